"""The probe `ood`: does the model notice that an input is of another kind than it knows?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, MinLen

from sft_engine import RecipeError, order, sections
from sft_engine.columns import column_of
from sft_engine.feed import transformed
from sft_probes import ood_scores
from sft_probes.asking import require_whole_model
from sft_probes.features import Said, said
from sft_probes.measures import Measure
from sft_probes.outside import MADE, nonsense, read_outside
from sft_probes.severity import chosen

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from sft_engine import Run, Split, View
    from sft_engine.sections import Block

Score = Literal["max-probability", "max-logit", "energy", "mahalanobis", "nearest"]
ALL: tuple[Score, ...] = ("max-probability", "max-logit", "energy", "mahalanobis", "nearest")
NEED_TRAINING = ("mahalanobis", "nearest")
HEADS = {
    "auroc": "AUROC",
    "aupr_in": "AUPR in",
    "aupr_out": "AUPR out",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
}


class OutOfDistribution(Measure):
    """Tell examples of the split from others by scores of logits and of penultimate features.

    Costs a forward pass over the examples, as many others, and those of training that features are compared
    with. If no data is named, nonsense is made of the split's own inputs, which is far from anything that a
    model will meet: easy to notice, and no proof that near misses would be.

    Args:
        data: A file with examples of another kind, as of `evaluate --data`, with the recipe's input
            columns; empty for nonsense made of the split's own inputs.
        scores: Which scores; `mahalanobis` and `nearest` look at features, all others at logits.
        neighbours: Which nearest example of training `nearest` measures the distance to.
        training: Training examples that features are compared with, drawn at random; 0 for all.
        split: Whose examples are in distribution.
        examples: How many of them, and how many others, drawn at random; 0 for all.
        seed: Of these draws and of the nonsense.
    """

    title = "Out-of-distribution detection"
    kinds: ClassVar[frozenset[str]] = frozenset({"classification"})

    def __init__(
        self,
        data: str = "",
        scores: Annotated[tuple[Score, ...], MinLen(1)] = ALL,
        neighbours: Annotated[int, Ge(1)] = 10,
        training: Annotated[int, Ge(0)] = 1000,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(split, examples, seed)
        self.data, self.scores, self.neighbours, self.training = data, scores, neighbours, training
        self.outside: Dataset | None = None
        self.results: dict[str, dict[str, float]] = {}
        self.counts = (0, 0)
        self.role = ""

    def prepare(self, run: Run, data: Split) -> None:
        """Read the data; refuse what cannot be made or compared."""
        super().prepare(run, data)
        self.ready = True  # targets are not needed here
        require_whole_model(run, self.name)
        if self.data:
            self.outside = read_outside(run, self.data, self.name)
        self.role = next((role for role in MADE if role in data.rows.column_names), "")
        if not self.data and not self.role:
            raise RecipeError(
                f"`{self.name}` can make nonsense of {', '.join(MADE)} only: name a file with examples of "
                "another kind in its `data`"
            )
        if "train" not in run.splits and set(self.scores) & set(NEED_TRAINING):
            self.ready = False  # a finished run looks at other data

    @property
    def source(self) -> str:
        """What the other examples are, in words."""
        if self.data:
            return self.data
        return MADE[self.role]

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Run the model on all that is compared, on every rank alike."""
        super(Measure, self).collect(run, view, values, predictions)  # without targets, too
        data = run.splits[self.split]
        ids = list(range(len(data))) if self.ids is None else self.ids
        inside = said(run, transformed(data, ids, (0,), []), self.name)
        outside = said(run, self._others(data, ids), self.name)
        self.counts = (len(inside.logits), len(outside.logits))
        self.results = self._figures(run, inside, outside)

    def _others(self, data: Split, ids: list[int]) -> list[dict[str, Any]]:
        if self.outside is not None:
            others = chosen(len(self.outside), self.examples, self.seed)
            return list(self.outside if others is None else self.outside.select(others))
        features = None
        if "features" in data.rows.column_names:
            column = column_of(data.rows, "features")
            features = np.asarray(column.flatten(), dtype=np.float64).reshape(len(column), -1)

        def change(row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
            nonsense(row, draws, features)
            return row

        key = (order.mix(self.seed, order.name_key("ood")),)
        return transformed(data, ids, key, [change])

    def _figures(self, run: Run, inside: Said, outside: Said) -> dict[str, dict[str, float]]:
        """Return the figures of each score."""
        known, labels = self._training(run)
        found: dict[str, dict[str, float]] = {}
        for score in self.scores:
            one, other = (self._scored(score, each, known, labels) for each in (inside, outside))
            found[score] = ood_scores.figures(one, other)
        return found

    def _training(self, run: Run) -> tuple[Said | None, Any]:
        """Return what the model says of training examples that have a class, and their classes."""
        if not set(self.scores) & set(NEED_TRAINING):
            return None, None
        data = run.splits["train"]
        labels = np.asarray(column_of(data.rows, run.task.target), dtype=np.int64)
        usable = np.flatnonzero(labels >= 0)
        some = chosen(len(usable), self.training, self.seed)
        ids = (usable if some is None else usable[some]).tolist()
        return said(run, transformed(data, ids, (0,), []), self.name), labels[ids]

    def _scored(self, score: Score, each: Said, training: Said | None, labels: Any) -> Any:
        if score == "mahalanobis" and training is not None:
            return ood_scores.mahalanobis(each.features, training.features, labels)
        if score == "nearest" and training is not None:
            return ood_scores.nearest(each.features, training.features, self.neighbours)
        of_logits = {
            "max-probability": ood_scores.max_probability,
            "max-logit": ood_scores.max_logit,
            "energy": ood_scores.energy,
        }
        return of_logits[score](each.logits)

    def facts(self, run: Run) -> dict[str, Any]:  # noqa: ARG002 - contract
        """Return the figures of each score."""
        return {
            "split": self.split,
            "examples": self.counts[0],
            "outside": self.source,
            "outside_examples": self.counts[1],
            "seed": self.seed,
            "scores": self.results,
        }

    def summary(self, run: Run) -> str:  # noqa: ARG002 - contract
        """Say which score is best, and against what."""
        best = max(self.results, key=lambda name: self.results[name]["auroc"])
        against = "the examples of " + self.data if self.data else f"nonsense ({self.source})"
        return (
            f"Best of {len(self.results)} scores: {best}, AUROC {self.results[best]['auroc']:.3f} against "
            f"{against}."
        )

    def blocks(self, run: Run) -> list[Block]:  # noqa: ARG002 - contract
        """Return a chart and the table."""
        names = list(self.results)
        chart = sections.bars(
            "AUROC by score", names, [self.results[each]["auroc"] for each in names], label="AUROC"
        )
        rows = [[name, *(self.results[name][key] for key in HEADS)] for name in names]
        far = (
            ""
            if self.data
            else " No data was named: this is far from anything that the model will meet. Name a file in "
            "`data` to know about near misses."
        )
        note = (
            f"In distribution, the positive class: {self.counts[0]} examples of the {self.split} split. "
            f"Out of distribution: {self.counts[1]} examples, {self.source}.{far} AUROC of chance: 0.5. "
            "The best score of several was picked on these very examples."
        )
        table = sections.table("Detection by score", ["score", *HEADS.values()], rows, note=note)
        return [chart, table]
