"""Whether a difference holds for other seeds, and for other training data where that varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_engine.comparing.design import RunMean, pairs_of, run_mean
from sft_engine.significance.intervals import Estimate
from sft_engine.significance.paired import permutation_paired, permutation_unpaired

if TYPE_CHECKING:
    from sft_engine.comparing.runs import Group


@dataclass(frozen=True)
class Question:
    """What is asked of every pair.

    Args:
        metric: Its name.
        larger_is_better: Which way it is better.
        level: Of intervals.
        resamples: Of bootstraps.
        seed: Of all draws.
    """

    metric: str
    larger_is_better: bool
    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class OverRuns:
    """Whether the difference holds for other seeds, on these examples.

    Args:
        test: Which test.
        p: Two-sided.
        least_p: The smallest p that so few runs could give; 0 where there is no such limit.
        pairs: Pairs of runs; 0 if runs were not paired.
        limits: Of the difference, by Student's t.
        error: Standard error.
        freedom: Its degrees of freedom.
    """

    test: str
    p: float
    least_p: float
    pairs: int
    limits: Estimate
    error: float
    freedom: float


def over_runs_of(
    groups: Sequence[Group], scores: Sequence[Sequence[float]], question: Question
) -> OverRuns | None:
    """Test the difference of means over seeds; None where a group has one run, or a value is missing."""
    if min(map(len, scores)) < 2 or np.isnan(np.concatenate(scores)).any():  # noqa: PLR2004
        return None
    pairs = pairs_of(*groups)
    if not pairs:
        return _unpaired_runs(groups, scores, question)
    by_run = [
        {member.folder: score for member, score in zip(group.members, column, strict=True)}
        for group, column in zip(groups, scores, strict=True)
    ]
    one = [by_run[0][a.folder] for a, _ in pairs]
    two = [by_run[1][b.folder] for _, b in pairs]
    mean = run_mean([a for a, _ in pairs], [x - y for x, y in zip(one, two, strict=True)])
    limits = student(mean.value, mean.error, mean.freedom, question.level)
    if mean.kind == "crossed" and not math.isnan(mean.p):
        return OverRuns(
            "t of the crossed study", mean.p, 0.0, len(pairs), limits, mean.error, mean.freedom
        )
    if mean.kind == "clustered":
        p = _two_sided(mean.value, mean.error, mean.freedom)
        return OverRuns(
            "t of the study's means", p, 0.0, len(pairs), limits, mean.error, mean.freedom
        )
    found = permutation_paired(one, two, seed=question.seed)
    return OverRuns(
        "paired permutation", found.p, found.least_p, len(pairs), limits, mean.error, mean.freedom
    )


def _unpaired_runs(
    groups: Sequence[Group], scores: Sequence[Sequence[float]], question: Question
) -> OverRuns:
    parts = [run_mean(g.members, column) for g, column in zip(groups, scores, strict=True)]
    error = math.hypot(*(part.error for part in parts))
    freedom = _satterthwaite(parts)
    value = float(np.mean(scores[0]) - np.mean(scores[1]))
    limits = student(value, error, freedom, question.level)
    if any(part.kind != "independent" for part in parts):
        p = _two_sided(value, error, freedom)
        return OverRuns("t of two studies", p, 0.0, 0, limits, error, freedom)
    found = permutation_unpaired(scores[0], scores[1], seed=question.seed)
    return OverRuns("permutation", found.p, found.least_p, 0, limits, error, freedom)


def _satterthwaite(parts: Sequence[RunMean]) -> float:
    total = sum(part.error**2 for part in parts)
    rest = sum(part.error**4 / part.freedom for part in parts)
    return total**2 / rest if rest > 0 else min(part.freedom for part in parts)


def _two_sided(value: float, error: float, freedom: float) -> float:
    from scipy.stats import t

    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * t.sf(abs(value) / error, freedom))


def student(value: float, error: float, freedom: float, level: float) -> Estimate:
    """Return a value with Student's limits."""
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, freedom)) * error
    return Estimate(value, value - half, value + half, level)
