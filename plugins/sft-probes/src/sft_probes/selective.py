"""Selective prediction: how good are the answers that are left if the least certain ones are not given?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Gt, Le

from sft_engine import sections
from sft_engine.significance.intervals import wilson
from sft_probes.measures import Measure, thinned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Run
    from sft_engine.sections import Block

    Floats = NDArray[np.float64]


def risks(confidence: Floats, wrong: Floats) -> Floats:
    """Return the error rate among the 1, 2, … n most certain examples (n,).

    Where examples are equally certain, each counts with the error rate of all of them: the curve does not
    depend on the order of the examples.

    Args:
        confidence: Of each answer (n,).
        wrong: 1 where it is wrong, else 0 (n,).
    """
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    rate = np.bincount(group, wrong) / counts
    errors = np.cumsum(np.repeat(rate, counts))
    return np.asarray(errors / np.arange(1, len(wrong) + 1))


def aurc(confidence: Floats, wrong: Floats) -> float:
    """Return the area under the risk-coverage curve, the mean of `risks` (Geifman et al. 2019)."""
    return float(risks(confidence, wrong).mean())


def excess_aurc(confidence: Floats, wrong: Floats) -> float:
    """Return how much larger the area is than if all right answers were more certain than all wrong ones."""
    return aurc(confidence, wrong) - aurc(-wrong, wrong)


def kept_at(count: int, coverage: float) -> int:
    """Return how many of `count` examples a coverage is."""
    return max(1, math.ceil(coverage * count - 1e-9))


class Selective(Measure):
    """Give no answer where the model is least certain: risk by coverage, AURC, accuracy at a coverage.

    Certainty is the probability of the predicted class; with several labels, that of the least certain label,
    and an example is right if all its labels are. Needs no pass of its own.

    Args:
        coverage: Share of the examples that are answered, for one figure: the accuracy on these.
        split: Which split is looked at.
    """

    title = "Selective prediction"

    def __init__(self, coverage: Annotated[float, Gt(0), Le(1)] = 0.8, split: str = "test") -> None:
        super().__init__(split)
        self.coverage = coverage

    @property
    def wrong(self) -> Floats:
        """1 where the answer is wrong."""
        return np.asarray(~self.found.right, dtype=np.float64)

    def facts(self, run: Run) -> dict[str, Any]:  # noqa: ARG002 - contract
        """Return the areas, and the accuracy at the coverage and at full coverage."""
        confidence, wrong = self.found.confidence, self.wrong
        curve = risks(confidence, wrong)
        kept = kept_at(len(wrong), self.coverage)
        share = wilson((1 - curve[kept - 1]) * kept, kept)
        return {
            **self.counted(),
            "aurc": aurc(confidence, wrong),
            "excess_aurc": excess_aurc(confidence, wrong),
            "coverage": self.coverage,
            "accuracy_at_coverage": share.value,
            "low": share.low,
            "high": share.high,
            "accuracy": float(1 - wrong.mean()),
        }

    def summary(self, run: Run) -> str:
        """Say what leaving the least certain ones to somebody else gains."""
        found = self.facts(run)
        return (
            f"Accuracy is {found['accuracy']:.3f} on all examples, and {found['accuracy_at_coverage']:.3f} "
            f"on the {self.coverage:.0%} of which the model is most certain."
        )

    def blocks(self, run: Run) -> list[Block]:
        """Return the curve and the figures."""
        found, wrong = self.facts(run), self.wrong
        curve, ideal = risks(self.found.confidence, wrong), risks(-wrong, wrong)
        places = thinned(len(wrong))
        coverage = (places + 1) / len(wrong)
        chart = sections.lines(
            "Risk by coverage",
            x=("coverage: share of the examples that are answered", coverage.tolist()),
            y="risk: error rate among these",
            series={
                "model": curve[places].tolist(),
                "best possible order": ideal[places].tolist(),
                "random order": [float(wrong.mean())] * len(places),
            },
        )
        rows: list[list[Any]] = [
            ["accuracy on all", found["accuracy"]],
            [f"accuracy at coverage {self.coverage:g}", found["accuracy_at_coverage"]],
            ["… lower end of its 95 % interval", found["low"]],
            ["… upper end", found["high"]],
            ["AURC: mean risk over all coverages, 0 is best", found["aurc"]],
            ["excess AURC: above that of the best possible order", found["excess_aurc"]],
        ]
        several = " An example is right if all its labels are." if self.found.several else ""
        note = f"{self.examples_note} Sorted by the probability of the prediction.{several} Interval: Wilson's."
        return [
            chart,
            sections.table("Selective prediction", ["measure", "value"], rows, note=note),
        ]
