"""Which runs belong together: pairs of the same seeds, and studies whose runs share data and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft_engine.significance.variance import crossed_mean

if TYPE_CHECKING:
    from sft_engine.comparing.runs import Group, Member

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class RunMean:
    """The mean of a value over runs, as far as so many runs tell it.

    Args:
        value: The mean.
        error: Its standard error for other seeds, and other training data where that varies.
        freedom: Degrees of freedom of the error.
        kind: `independent` runs; `crossed`: runs share training data and seeds; `clustered`: such a table
            with holes, of which only the means of one factor count as values.
        count: Independent values, or cells of the table.
        p: Two-sided, for a mean of zero, of a crossed table; NaN otherwise.
    """

    value: float
    error: float
    freedom: float
    kind: Literal["independent", "crossed", "clustered"]
    count: int
    p: float = math.nan


def pairs_of(first: Group, second: Group) -> list[tuple[Member, Member]]:
    """Return the runs that have the same seeds and training data; none if they do not match well.

    They match if seeds and data tell the runs of each group apart, and every run of the smaller group
    has its partner. Where no group has more than one training set, data does not count.
    """
    by_data = any(len({m.data for m in group.members}) > 1 for group in (first, second))
    one, two = (
        {(m.data if by_data else "", m.seeds): m for m in group.members}
        for group in (first, second)
    )
    unique = len(one) == len(first.members) and len(two) == len(second.members)
    common = [key for key in one if key in two]
    if not unique or len(common) < 2 or len(common) < min(len(one), len(two)):  # noqa: PLR2004
        return []
    return [(one[key], two[key]) for key in common]


def table_of(members: Sequence[Member], values: Sequence[float]) -> Floats | None:
    """Return values by training data and seed (data, seeds), NaN where there is no run.

    None if runs share neither or only one of both: then they are independent, for other seeds or other
    data.
    """
    data = list(dict.fromkeys(member.data for member in members))
    seeds = list(dict.fromkeys(member.seeds for member in members))
    if min(len(data), len(seeds)) < 2 or max(len(data), len(seeds)) == len(members):  # noqa: PLR2004
        return None
    table = np.full((len(data), len(seeds)), np.nan)
    for member, value in zip(members, values, strict=True):
        table[data.index(member.data), seeds.index(member.seeds)] = value
    return table


def run_mean(members: Sequence[Member], values: Sequence[float]) -> RunMean:
    """Return the mean over runs and its standard error, by what the runs share."""
    table = table_of(members, values)
    if table is None:
        return _independent(np.asarray(values, dtype=np.float64), "independent")
    whole = table[~np.isnan(table).any(axis=1)]
    if len(whole) >= 2:  # noqa: PLR2004
        found = crossed_mean(whole)
        mean = float(np.mean(values))
        return RunMean(mean, found.error, found.freedom, "crossed", whole.size, found.p)
    fewer = int(table.shape[0] > table.shape[1])
    return _independent(np.nanmean(table, axis=1 - fewer), "clustered")


def _independent(values: Floats, kind: Literal["independent", "clustered"]) -> RunMean:
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return RunMean(float(values.mean()), error, count - 1, kind, count)


def is_crossed(group: Group) -> bool:
    """Say whether runs of a group share training data and seeds."""
    return table_of(group.members, [0.0] * len(group.members)) is not None
