"""The batches that an exported model is traced with and compared on.

There are two sizes of batch and, where inputs have a length, two lengths. A dimension that is not
the same in all of them may have any size in the exported model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.feed import fetch

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.flow import Run, Split

SIZES = (1, 3)
"""Of the batches. Tracing takes the larger one: a dimension of 1 would be taken for a constant."""

_SHORT, _LONG = "a film", "the film was good and the plot was very bad " * 2
_SIDE = 320


@dataclass(frozen=True)
class Samples:
    """Batches of model inputs.

    Args:
        batches: Inputs by name; the first dimension is the examples. The last batch is the largest.
        source: What they were made of, for people.
    """

    batches: list[dict[str, Tensor]]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in the model's order."""
        return tuple(self.batches[0])

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of the first input in each batch."""
        return tuple(tuple(batch[self.names[0]].shape) for batch in self.batches)

    def dimensions(self) -> dict[str, list[int | str]]:
        """Return the dimensions of each input: a number, or a name if it may have any size."""
        found: dict[tuple[int, ...], str] = {
            tuple(len(b[self.names[0]]) for b in self.batches): "batch"
        }
        named: dict[str, list[int | str]] = {}
        for name in self.names:
            sizes = list(zip(*(batch[name].shape for batch in self.batches), strict=True))
            named[name] = ["batch", *(_dimension(each, found) for each in sizes[1:])]
        return named

    def described(self) -> dict[str, dict[str, Any]]:
        """Return element type and dimensions of each input, as JSON values."""
        return {
            name: {"dtype": _dtype_name(self.batches[0][name]), "dimensions": dimensions}
            for name, dimensions in self.dimensions().items()
        }


def _dimension(sizes: tuple[int, ...], found: dict[tuple[int, ...], str]) -> int | str:
    """Return a size that all batches share; else a name, the same for what varies in the same way."""
    if len(set(sizes)) == 1:
        return sizes[0]
    count = len(found)
    return found.setdefault(sizes, "sequence" if count == 1 else f"sequence_{count}")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def real_samples(run: Run) -> Samples:
    """Take examples of the split that the run was judged by."""
    name = next(name for name in ("test", "validation", "train") if name in run.splits)
    split = run.splits[name]
    lengths = getattr(split.examples, "lengths", None)
    if lengths is None:
        starts = [np.arange(len(split))]
    else:
        ascending = np.argsort(np.asarray(lengths), kind="stable")
        starts = [ascending, ascending[::-1]]
    batches = [
        _batch(run, split, np.resize(ids, size).tolist()) for size in SIZES for ids in starts
    ]
    if "text" in run.task.inputs and _one_length(batches):
        # All texts are equally long: others will come.
        batches = [*_synthetic(run), *batches]
    return Samples(batches, f"the {name} split")


def _batch(run: Run, split: Split, ids: list[int]) -> dict[str, Tensor]:
    inputs = fetch(split, run.task, run.backbone, ids, (0,), []).inputs
    # Training may have had the channels innermost: whoever loads the model has them first.
    return {name: value.contiguous() for name, value in inputs.items()}


def _one_length(batches: Sequence[dict[str, Tensor]]) -> bool:
    return len({tuple(v.shape[1:] for v in batch.values()) for batch in batches}) == 1


def synthetic_samples(run: Run) -> Samples | None:
    """Make inputs up; None for a task whose inputs are neither texts nor images."""
    known = {"text", "text_pair", "image"}
    if any(needed and role not in known for role, needed in run.task.inputs.items()):
        return None
    return Samples(_synthetic(run), "synthetic inputs")


def _synthetic(run: Run) -> list[dict[str, Tensor]]:
    texts = (_SHORT, _LONG) if "text" in run.task.inputs else (_SHORT,)
    return [_synthetic_batch(run, text, size) for size in SIZES for text in texts]


def _synthetic_batch(run: Run, text: str, size: int) -> dict[str, Tensor]:
    rows = [
        {role: _value(role, text, seed) for role, needed in run.task.inputs.items() if needed}
        for seed in range(size)
    ]
    inputs = run.backbone.collate(run.backbone.encode_rows(rows, run.task))
    return {name: value.contiguous() for name, value in inputs.items()}


def _value(role: str, text: str, seed: int) -> Any:
    if role == "image":
        draws = np.random.default_rng(seed)
        return draws.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    return text
