"""Labels worth a second look, by confident learning on examples that the model was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge

from sft_engine import RecipeError, sections
from sft_engine.columns import row_numbers
from sft_engine.reporting.shown_examples import rows_of
from sft_probes.measures import Measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Run, Split
    from sft_engine.sections import Block

    Floats = NDArray[np.float64]
    Ids = NDArray[np.int64]

LISTED = 200
"""Examples that the figures name, at most."""
WIDEST = 20
"""Classes of the largest matrix that is shown."""


@dataclass(frozen=True)
class Confident:
    """What confident learning says of labelled examples.

    Args:
        thresholds: Mean probability of each class among the examples with its label (classes,).
        joint: How many examples with label i are confidently of class j (classes, classes).
        suggested: That class of each example (n,); -1 where no class is confident.
        margin: Probability of the label minus that of the suggested class, or of the best other one (n,).
        share: Estimated share of labels that are off: the mass off the diagonal of the calibrated joint.
    """

    thresholds: Floats
    joint: Ids
    suggested: Ids
    margin: Floats
    share: float


def confident(shares: Floats, labels: Ids) -> Confident:
    """Count labels against confident classes (Northcutt et al. 2021, "Confident Learning", section 3.1).

    An example is confidently of class j if p_j is at least the mean of p_j among the examples that have the
    label j; of several such classes the most probable one counts.

    Args:
        shares: Class probabilities of a model that was not trained on these examples (n, classes).
        labels: Given classes (n,).
    """
    count, classes = shares.shape
    sizes = np.bincount(labels, minlength=classes)
    own = shares[np.arange(count), labels]
    sums = np.bincount(labels, own, minlength=classes)
    thresholds = np.divide(sums, sizes, out=np.full(classes, np.inf), where=sizes > 0)
    # Rounding of a mean of equal numbers must not put them below it.
    above = shares >= thresholds - 1e-12
    best = np.where(above, shares, -np.inf).argmax(axis=1)
    suggested = np.where(above.any(axis=1), best, -1)
    counted = suggested >= 0
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (labels[counted], suggested[counted]), 1)
    others = shares.copy()
    others[np.arange(count), labels] = -np.inf
    rivals = np.where(counted & (suggested != labels), suggested, others.argmax(axis=1))
    margin = own - shares[np.arange(count), rivals]
    return Confident(thresholds, joint, suggested, margin, _off(joint, sizes))


def _off(joint: Ids, sizes: Ids) -> float:
    """Return the mass off the diagonal when each row of the joint sums to the examples of its label."""
    rows = joint.sum(axis=1)
    right = np.divide(joint.diagonal(), rows, out=np.ones(len(rows)), where=rows > 0)
    return float(((1 - right) * sizes).sum() / sizes.sum())


@dataclass(frozen=True)
class Suspect:
    """A label worth a look.

    Args:
        example: Index in the split.
        given: Its label; with several labels, `NAME` or `not NAME`.
        suggested: What the model is confident of.
        margin: Probability of the label minus that of the suggestion; the smaller the more suspicious.
    """

    example: int
    given: str
    suggested: str
    margin: float


class LabelNoise(Measure):
    """List examples whose label and prediction contradict each other: look at these first.

    A contradiction may be an error of the label, of the model, or neither: an example of two minds. Nothing
    is changed, and nothing is called wrong. With several labels each label is looked at by itself. Needs no
    pass of its own.

    Args:
        split: Which split is looked at; the model must not have been trained on it.
        shown: Examples that the section shows, the most suspicious first.
    """

    title = "Labels to look at first"

    def __init__(self, split: str = "test", shown: Annotated[int, Ge(1)] = 12) -> None:
        super().__init__(split)
        self.shown_most = shown

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse the training split."""
        super().prepare(run, data)
        if self.split == "train":
            raise RecipeError(
                f"`{self.name}` needs predictions of examples that the model was not trained on: set its "
                "`split` to 'test' or 'validation'"
            )

    def results(self, run: Run) -> tuple[list[Suspect], float, Ids | None]:
        """Return the suspects, the estimated share, and the joint where there is one class an example."""
        names = run.task.head.names
        found = self.found
        if not found.several:
            one = confident(found.shares, found.labels)
            return _ranked(self._suspects(one, found.labels, names)), one.share, one.joint
        suspects, shares = [], []
        for place, name in enumerate(names):
            yes = found.shares[:, place]
            labels = found.truth[:, place].astype(np.int64)
            one = confident(np.stack([1 - yes, yes], axis=1), labels)
            suspects += self._suspects(one, labels, (f"not {name}", name))
            shares.append(one.share)
        return _ranked(suspects), float(np.mean(shares)), None

    def _suspects(self, one: Confident, labels: Ids, names: tuple[str, ...]) -> list[Suspect]:
        places = np.flatnonzero((one.suggested >= 0) & (one.suggested != labels))
        return [
            Suspect(
                int(self.found.ids[i]),
                names[labels[i]],
                names[one.suggested[i]],
                float(one.margin[i]),
            )
            for i in places
        ]

    def facts(self, run: Run) -> dict[str, Any]:
        """Return how many there are, and the first of them by their row."""
        suspects, share, _ = self.results(run)
        rows = row_numbers(run.splits[self.split].rows)
        return {
            **self.counted(),
            "suspects": len(suspects),
            "estimated_share": share,
            "first": [
                {
                    "row": int(rows[each.example]),
                    "given": each.given,
                    "suggested": each.suggested,
                    "margin": each.margin,
                }
                for each in suspects[:LISTED]
            ],
        }

    def summary(self, run: Run) -> str:
        """Say how many are worth a look."""
        suspects, share, _ = self.results(run)
        if not suspects:
            return "No label contradicts a confident prediction."
        of = "labels" if self.found.several else "examples"
        return (
            f"{len(suspects)} {of} are worth a look: label and confident prediction contradict each other "
            f"(estimated share of such labels {share:.1%}, if the model were right)."
        )

    def blocks(self, run: Run) -> list[Block]:
        """Return what this is, the matrix of labels by confident classes, and the first suspects."""
        suspects, _, joint = self.results(run)
        blocks = [
            sections.text(
                f"{self.examples_note} Confident learning (Northcutt et al. 2021): an example is listed if "
                "the model gives another class at least the probability that it gives to examples of that "
                "class on average. Label or model may be off, or both answers be right: look at these first."
            )
        ]
        names = run.task.head.names
        if joint is not None and len(names) <= WIDEST:
            blocks.append(
                sections.matrix(
                    "Labels by the class that the model is confident of",
                    names,
                    names,
                    joint.tolist(),
                    row_label="label",
                    column_label="confident of",
                )
            )
        if suspects:
            blocks.append(self._examples(run, suspects[: self.shown_most]))
        return blocks

    def _examples(self, run: Run, suspects: list[Suspect]) -> Block:
        inputs = rows_of(run.splits[self.split].rows, tuple(run.task.inputs))
        rows = [
            {
                **inputs(each.example),
                "label": each.given,
                "the model is confident of": each.suggested,
                "margin": each.margin,
            }
            for each in suspects
        ]
        columns = list(dict.fromkeys(name for row in rows for name in row if name != "image"))
        return sections.examples("Look at these first", columns, rows)


def _ranked(suspects: list[Suspect]) -> list[Suspect]:
    return sorted(suspects, key=lambda each: (each.margin, each.example))
