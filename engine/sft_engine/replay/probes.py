"""The few examples of a split that replay is planned and checked with: always the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine.replay.trace import Inputs, Probe, Refused

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.components import Examples
    from sft_engine.flow import Batch
    from sft_engine.replay.shapes import Place

Fetch = Callable[[list[int]], "Batch"]
Read = Callable[["Batch"], "list[Tensor]"]
FEWEST = 4
"""Examples below which there is nothing to gain."""


def choose(examples: Examples) -> list[int]:
    """Return three examples, of different lengths where there are lengths, the shortest first."""
    if len(examples) < FEWEST:
        raise Refused(f"there are fewer than {FEWEST} examples")
    lengths = getattr(examples, "lengths", None)
    if lengths is None:
        return [0, 1, 2]
    ordered = np.argsort(np.asarray(lengths), kind="stable")
    own = np.asarray(lengths)[ordered]
    shorter = int((own < own[-1]).sum())
    middle = shorter // 2 if shorter > 1 else 1
    return [int(ordered[i]) for i in (0, middle, len(ordered) - 1)]


def probes(
    ids: Sequence[int], fetch: Fetch, read: Read, examples: Examples, exact: Read | None = None
) -> tuple[Probe, Probe, Probe]:
    """Return probes of two, of three and of one example, the first of the three.

    Args:
        ids: Three examples.
        fetch: Fetches real examples, on the device.
        read: Runs the model on a batch and returns what training and evaluation read.
        examples: Where the lengths are.
        exact: The same as `read` without autocast; None if there is none.

    Raises:
        Refused: the same example is not the same twice.
    """
    batches = [fetch(list(part)) for part in (ids[:2], ids, ids[:1])]
    again = fetch(list(ids))
    for name, value in batches[1].inputs.items():
        other = again.inputs[name]
        if value.shape != other.shape or not bool(((value == other) | value.isnan()).all()):
            raise Refused(f"the input {name!r} of an example is not the same twice")
    first, second, alone = (_probe(batch, read, exact, examples) for batch in batches)
    return first, second, alone


def _probe(batch: Batch, read: Read, exact: Read | None, examples: Examples) -> Probe:
    def reading(way: Read) -> Callable[[Inputs], list[Tensor]]:
        return lambda inputs: way(replace(batch, inputs=dict(inputs)))

    valid = valid_positions(batch.inputs, batch.ids, examples)
    return Probe(batch.inputs, reading(read), valid, exact and reading(exact))


def valid_positions(
    inputs: Mapping[str, Tensor], ids: Sequence[int], examples: Any
) -> dict[Place, Tensor]:
    """Return which positions of each example are not padding, for dimensions that may be padded.

    Taken from an input that ends in `attention_mask` and is as long, else from the examples' lengths,
    with padding at the end.
    """
    masks = [m for name, m in inputs.items() if name.endswith("attention_mask") and m.ndim == 2]  # noqa: PLR2004
    valid: dict[Place, Tensor] = {}
    for name, value in inputs.items():
        if value.ndim < 2 or value.is_floating_point():  # noqa: PLR2004
            continue
        mask = next((m for m in masks if m.shape == value.shape[:2]), None)
        if mask is not None:
            valid[name, 1] = mask.bool()
            continue
        lengths = getattr(examples, "lengths", None)
        if lengths is not None:
            own = torch.as_tensor(np.asarray(lengths)[list(ids)], device=value.device)
            valid[name, 1] = torch.arange(value.shape[1], device=value.device) < own[:, None]
    return valid
