"""The frame of probes that disturb nothing: they look at what the model said of a split as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sft_engine import RecipeError
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sft_engine import Head, Run, Split, View
    from sft_engine.sections import Block

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]
    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What a model said of the examples of a split that have a target, and whose logits are finite.

    Args:
        ids: Index of each in the split (n,).
        logits: (n, outputs).
        truth: 1 for the class of an example, or for each of its labels, else 0 (n, outputs).
        several: An example may have any of the labels, instead of one class of many.
        left_out: Examples without target, or for which the model returned no finite number.
    """

    ids: Ids
    logits: Floats
    truth: Floats
    several: bool
    left_out: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shares(self) -> Floats:
        """Probabilities (n, outputs)."""
        return probabilities_of(self.logits, several=self.several)

    @property
    def labels(self) -> Ids:
        """The class of each example (n,); not with several labels."""
        return np.asarray(self.truth.argmax(axis=1))

    @property
    def right(self) -> Flags:
        """Whether the prediction is right (n,); with several labels, whether all of them are."""
        if self.several:
            return np.asarray(((self.logits > 0) == (self.truth > 0)).all(axis=1))
        return np.asarray(self.logits.argmax(axis=1) == self.labels)

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class (n,); with several labels, of the least certain answer."""
        if self.several:
            return np.asarray(np.maximum(self.shares, 1 - self.shares).min(axis=1))
        return np.asarray(self.shares.max(axis=1))


def probabilities_of(logits: Floats, *, several: bool) -> Floats:
    """Return softmax over classes, or with several labels the sigmoid of each: (n, outputs)."""
    if several:
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))
    return np.asarray(np.exp(logits - logits_total(logits)))


def logits_total(logits: Floats) -> Floats:
    """Return log of the sum of exp over classes: (n, 1)."""
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))


def known(predictions: Mapping[str, Tensor], head: Head, ids: Sequence[int] | None = None) -> Known:
    """Return the examples that can be judged.

    Args:
        predictions: `logits` and `label`, as a classification task keeps them.
        head: Of the task.
        ids: Index of each example in its split; None for all of it.
    """
    logits = predictions["logits"].double().numpy()
    label = predictions["label"].numpy()
    several = head.kind == "multi-label"
    usable = np.isfinite(logits).all(axis=1)
    if not several:
        usable &= label >= 0
    places = np.arange(len(logits)) if ids is None else np.asarray(ids)
    kept = label[usable]
    truth = (kept > 0).astype(np.float64) if several else np.eye(head.outputs)[kept]
    return Known(places[usable], logits[usable], truth, several, int((~usable).sum()))


class Measure(Probe):
    """A probe without views: figures of what the model said of the split as it is.

    Args:
        split: Which split is looked at.
        examples: How many examples of it, drawn at random; 0 for all.
        seed: Of that draw.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "multi-label"})
    """Kinds of tasks for which it makes sense."""

    def __init__(self, split: str, examples: int = 0, seed: int = 0) -> None:
        super().__init__((), split, examples, seed)
        self.known: Known | None = None

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse tasks for which this makes no sense; let splits without targets be."""
        super().prepare(run, data)
        require_kind(run, self.name, self.kinds)
        self.ready = run.task.target in data.rows.column_names

    def views(self, run: Run) -> list[View]:  # noqa: ARG002 - contract
        """Return none."""
        return []

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Keep what the model said of the examples that have a target."""
        super().collect(run, view, values, predictions)
        self.known = known(predictions, run.task.head, self.ids)
        if not len(self.known):
            self.clean = None  # there is nothing to report

    @property
    def found(self) -> Known:
        """What was kept."""
        assert self.known is not None
        return self.known

    @property
    def examples_note(self) -> str:
        """A sentence on which examples these are."""
        left = self.found.left_out
        without = f"; {left} without a target or a finite answer are left out" if left else ""
        return f"{len(self.found)} examples of the {self.split} split{without}."

    def counted(self) -> dict[str, Any]:
        """Return the figures that all measures have."""
        return {
            "split": self.split,
            "examples": len(self.found),
            "left_out": self.found.left_out,
        }

    def blocks(self, run: Run) -> list[Block]:
        """Return the blocks of the section."""
        raise NotImplementedError

    def summary(self, run: Run) -> str:
        """Return one sentence for the top of the section."""
        raise NotImplementedError

    def facts(self, run: Run) -> dict[str, Any]:
        """Return the figures, for programs."""
        raise NotImplementedError


def require_kind(run: Run, name: str, kinds: frozenset[str]) -> None:
    """Raise RecipeError unless the task is of one of these kinds."""
    kind = run.task.head.kind
    if kind not in kinds:
        allowed = " or ".join(sorted(kinds))
        raise RecipeError(f"`{name}` is for {allowed}, and the task is {kind}: remove the probe")


def thinned(count: int, most: int = 60) -> Ids:
    """Return at most so many places of `count`, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
