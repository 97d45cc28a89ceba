"""Worst group: how good the model is for each value of a column, and where it is worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from sft_engine import RecipeError, sections
from sft_engine.columns import column_of, is_list
from sft_engine.sentences import choices, suggest
from sft_engine.significance.intervals import wilson
from sft_engine.significance.paired import holm
from sft_probes.measures import Measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Run, Split
    from sft_engine.sections import Block

LEVEL = 0.95
MISSING = "(missing)"
MOST = 50
"""Groups that a report shows; of more, the largest."""


@dataclass(frozen=True)
class Group:
    """The examples with one value of the column.

    Args:
        name: The value, or the limits of a range.
        examples: How many there are.
        right: How many of them the model gets right.
        low: Lower end of Wilson's interval of the accuracy.
        high: Upper end.
        p: Two-sided p-value of Fisher's exact test against all others, after Holm over all groups judged;
            None for a group too small to be judged.
    """

    name: str
    examples: int
    right: int
    low: float
    high: float
    p: float | None

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return self.right / self.examples


def values_of(column: Any, ranges: int) -> list[str]:
    """Return the group of each row: its value, or where there are more than ten numbers its range.

    Args:
        column: An Arrow array of texts, numbers or flags.
        ranges: Of equally many rows, into which numbers are cut.
    """
    values = [None if _is_nan(each) else each for each in column.to_pylist()]
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        known = np.array([v for v in values if v is not None], dtype=np.float64)
        if len(np.unique(known)) > max(10, ranges):
            return _ranges(values, np.unique(np.quantile(known, np.linspace(0, 1, ranges + 1))))
    return [MISSING if v is None else _written(v) for v in values]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(values: Sequence[Any], ends: NDArray[np.float64]) -> list[str]:
    names = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(ends)]

    def name(value: Any) -> str:
        if value is None:
            return MISSING
        return names[min(int(np.searchsorted(ends, value, side="right")) - 1, len(names) - 1)]

    return [name(value) for value in values]


def groups_of(names: Sequence[str], right: NDArray[np.bool_], smallest: int) -> list[Group]:
    """Return the groups, the worst of those that are large enough first, then the small ones.

    Intervals are at level 1 - 0.05 / k for k groups that are judged: all hold at once with 95 %, so that the
    worst may be read off (Bonferroni).

    Args:
        names: Group of each example.
        right: Whether the model gets it right (n,).
        smallest: Examples that a group needs to be judged.
    """
    kinds, place = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(place)
    hits = np.bincount(place, right).astype(np.int64)
    judged = [k for k in range(len(kinds)) if sizes[k] >= smallest]
    level = 1 - (1 - LEVEL) / max(len(judged), 1)
    p_values = dict(zip(judged, holm([_fisher(hits, sizes, k) for k in judged]), strict=True))
    found = []
    for k, kind in enumerate(kinds):
        share = wilson(int(hits[k]), int(sizes[k]), level)
        name = str(kind)
        found.append(
            Group(name, int(sizes[k]), int(hits[k]), share.low, share.high, p_values.get(k))
        )
    return sorted(found, key=lambda g: (g.p is None, g.accuracy, -g.examples, g.name))


def _fisher(hits: NDArray[np.int64], sizes: NDArray[np.int64], k: int) -> float:
    from scipy.stats import fisher_exact

    if len(sizes) == 1:
        return 1.0
    own, others = int(hits[k]), int(hits.sum() - hits[k])
    table = [
        [own, int(sizes[k]) - own],
        [others, int(sizes.sum() - sizes[k]) - others],
    ]
    return float(fisher_exact(table).pvalue)


class Groups(Measure):
    """Accuracy for each value of a column, the worst group, and the gap to the best one.

    Whoever looks at many groups finds a bad one by chance: intervals hold for all groups at once (Bonferroni),
    p-values are adjusted (Holm). With several labels an example is right if all its labels are. Needs no pass
    of its own.

    Args:
        column: Of the data, by which examples are grouped; numbers of more than ten values are cut in ranges.
        smallest: Examples that a group needs to be judged; smaller ones are only listed.
        ranges: Into which numbers are cut, of equally many examples each.
        split: Which split is looked at.
    """

    title = "Worst group"

    def __init__(
        self,
        column: str,
        smallest: Annotated[int, Ge(1)] = 20,
        ranges: Annotated[int, Ge(2)] = 4,
        split: str = "test",
    ) -> None:
        super().__init__(split)
        self.column, self.smallest, self.ranges = column, smallest, ranges
        self.names: list[str] = []

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse a column that is not there, or has no values to group by."""
        super().prepare(run, data)
        there = data.rows.column_names
        if self.column not in there:
            if run.reopened:
                self.ready = False  # other data was given
                return
            hint = suggest(self.column, there) or choices(there)
            raise RecipeError(
                f"`{self.name}`: found the column '{self.column}', which the split '{self.split}' lacks; {hint}"
            )
        column = column_of(data.rows, self.column)
        if is_list(column.type) or pa.types.is_struct(column.type):
            raise RecipeError(
                f"`{self.name}`: the column '{self.column}' holds {column.type}; allowed are texts, numbers "
                "and flags: name another one"
            )
        values = values_of(column, self.ranges)
        if self.column == run.task.target and run.task.head.kind == "classification":
            names = run.task.head.names
            labels = column.to_pylist()
            values = [names[each] if each >= 0 else MISSING for each in labels]
        self.names = values

    @property
    def groups(self) -> list[Group]:
        """The groups, the worst first."""
        names = [self.names[each] for each in self.found.ids]
        return groups_of(names, self.found.right, self.smallest)

    def facts(self, run: Run) -> dict[str, Any]:  # noqa: ARG002 - contract
        """Return all groups, the worst and the gap."""
        groups = self.groups
        judged = [each for each in groups if each.p is not None]
        return {
            **self.counted(),
            "column": self.column,
            "accuracy": float(self.found.right.mean()),
            "worst": judged[0].name if judged else None,
            "worst_accuracy": judged[0].accuracy if judged else None,
            "gap": judged[-1].accuracy - judged[0].accuracy if judged else None,
            "judged": len(judged),
            "groups": [
                {
                    "name": each.name,
                    "examples": each.examples,
                    "accuracy": each.accuracy,
                    "low": each.low,
                    "high": each.high,
                    "p": each.p,
                }
                for each in groups
            ],
        }

    def summary(self, run: Run) -> str:  # noqa: ARG002 - contract
        """Say which group is worst, and whether that may be chance."""
        judged = [each for each in self.groups if each.p is not None]
        if not judged:
            return f"No group by '{self.column}' has {self.smallest} examples, so none is judged."
        worst, best = judged[0], judged[-1]
        if len(judged) == 1:
            return f"One group by '{self.column}' is large enough to be judged: '{worst.name}'."
        assert worst.p is not None
        chance = "more than chance" if worst.p < 1 - LEVEL else "which may be chance"
        return (
            f"Worst of {len(judged)} groups by '{self.column}': '{worst.name}' with accuracy "
            f"{worst.accuracy:.3f}, {best.accuracy - worst.accuracy:.3f} below the best; {chance} "
            f"(p = {worst.p:.2g} after Holm)."
        )

    def blocks(self, run: Run) -> list[Block]:  # noqa: ARG002 - contract
        """Return the bars of the groups that are judged, and the table of all."""
        groups = self.groups
        shown = sorted(groups, key=lambda each: -each.examples)[:MOST]
        groups = [each for each in groups if each in shown]
        judged = [each for each in groups if each.p is not None]
        columns = [self.column, "examples", "accuracy", "low", "high", "p (Holm)"]
        rows = [
            [each.name, each.examples, each.accuracy, each.low, each.high, each.p]
            for each in groups
        ]
        note = (
            f"{self.examples_note} Groups with fewer than {self.smallest} examples are not judged. Wilson "
            f"intervals that hold for all {len(judged)} groups judged at once with 95 % (Bonferroni); p: "
            "Fisher's exact test against all other examples, two-sided, after Holm. Whoever tries several "
            "columns tests more than these figures know of."
        )
        blocks = [sections.table(f"Accuracy by {self.column}", columns, rows, note=note)]
        if judged:
            blocks.insert(
                0,
                sections.bars(
                    f"Accuracy by {self.column}, the worst first",
                    [each.name for each in judged],
                    [each.accuracy for each in judged],
                    label="accuracy",
                    low=[each.low for each in judged],
                    high=[each.high for each in judged],
                ),
            )
        return blocks
