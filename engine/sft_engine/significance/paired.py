"""Tests of two: models on the same examples, methods over the same seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]

MOST_ARRANGEMENTS = 2**17
"""As many are enumerated."""

BLOCK = 2**21
"""Numbers that are drawn at a time: 16 MB, however many pairs there are."""


@dataclass(frozen=True)
class McNemar:
    """Whether two models are right equally often.

    Args:
        only_first: Examples that the first model alone has right.
        only_second: Examples that the second model alone has right.
        exact: Two-sided p of the exact conditional test, which never promises too much.
        mid_p: Two-sided mid-p, closer to its level and still safe in practice.
    """

    only_first: int
    only_second: int
    exact: float
    mid_p: float


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Test whether the examples on which two models differ fall to both alike.

    Source: Q. McNemar, Psychometrika 12 (1947) 153-157; mid-p as in M. W. Fagerland, S. Lydersen, P. Laake,
    BMC Medical Research Methodology 13:91 (2013).

    Raises:
        ValueError: a count is negative.
    """
    from scipy.stats import binom

    if min(only_first, only_second) < 0:
        raise ValueError(f"counts {only_first} and {only_second}: none may be below 0")
    differing, least = only_first + only_second, min(only_first, only_second)
    if differing == 0:
        return McNemar(0, 0, 1.0, 1.0)
    both_tails = 2 * float(binom.cdf(least, differing, 0.5))
    mid = both_tails - float(binom.pmf(least, differing, 0.5))
    return McNemar(only_first, only_second, min(1.0, both_tails), min(1.0, mid))


@dataclass(frozen=True)
class Permutation:
    """A permutation test of a difference of means.

    Args:
        difference: First mean minus second.
        p: Two-sided.
        least_p: The smallest p that so few values could give.
        arrangements: How many were looked at.
        kind: All arrangements (`exact`), or a sample of them.
        paired: Whether signs of differences were flipped, or values exchanged between groups.
    """

    difference: float
    p: float
    least_p: float
    arrangements: int
    kind: Literal["exact", "sampled"]
    paired: bool


def permutation_paired(
    first: ArrayLike, second: ArrayLike, *, samples: int = 100_000, seed: int = 0
) -> Permutation:
    """Test a difference of means over pairs by flipping the signs of their differences.

    Up to 17 pairs all arrangements are enumerated. Six pairs at least are needed for a p below 0.05.

    Source: R. A. Fisher, The Design of Experiments (1935), section 21; sampled p with the observed
    arrangement counted as in B. Phipson, G. K. Smyth, SAGMB 9 (2010) 39.

    Args:
        first: Values of the one (n,).
        second: Values of the other, pair by pair (n,).
        samples: Arrangements drawn where there are too many to enumerate.
        seed: Of these draws.

    Raises:
        ValueError: there are not equally many, or none.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1 or len(one) == 0:
        raise ValueError(f"pairs of shapes {one.shape} and {two.shape}")
    gaps, exact = one - two, 2 ** len(one) <= MOST_ARRANGEMENTS
    if exact:
        numbers = np.arange(2 ** len(one))[:, None] >> np.arange(len(one)) & 1
        means = (1.0 - 2.0 * numbers) @ gaps / len(gaps)
    else:
        rng = np.random.default_rng(seed)
        means = np.concatenate(
            [
                (1.0 - 2.0 * rng.integers(0, 2, size=(rows, len(one)))) @ gaps / len(gaps)
                for rows in _blocks(samples, len(one))
            ]
        )
    return _judge(float(gaps.mean()), means, 2.0 ** (1 - len(gaps)), exact=exact, paired=True)


def permutation_unpaired(
    first: ArrayLike, second: ArrayLike, *, samples: int = 100_000, seed: int = 0
) -> Permutation:
    """Test a difference of means by exchanging values between two groups.

    All divisions are enumerated where that is feasible. Four in each group at least are needed for a p below
    0.05.

    Source: as `permutation_paired`, section 21.1 (E. J. G. Pitman, Suppl. JRSS 4 (1937) 119-130).

    Raises:
        ValueError: a group is empty.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or two.ndim != 1 or 0 in (len(one), len(two)):
        raise ValueError(f"groups of shapes {one.shape} and {two.shape}")
    values, size = np.concatenate([one, two]), len(one)
    divisions = math.comb(len(values), size)
    exact = divisions <= MOST_ARRANGEMENTS
    if exact:
        chosen = np.array(list(itertools.combinations(range(len(values)), size)))
        sums = values[chosen].sum(axis=1)
    else:
        rng = np.random.default_rng(seed)
        sums = np.concatenate(
            [
                rng.permuted(np.tile(values, (rows, 1)), axis=1)[:, :size].sum(axis=1)
                for rows in _blocks(samples, len(values))
            ]
        )
    means = sums / size - (values.sum() - sums) / len(two)
    least = (2.0 if len(one) == len(two) else 1.0) / divisions
    return _judge(float(one.mean() - two.mean()), means, least, exact=exact, paired=False)


def _blocks(samples: int, width: int) -> list[int]:
    """Divide a number of rows of a width into blocks that memory holds."""
    size = max(1, BLOCK // width)
    return [min(size, samples - start) for start in range(0, samples, size)]


def _judge(
    difference: float, means: Floats, least: float, *, exact: bool, paired: bool
) -> Permutation:
    """Count the arrangements that are as far from zero as the observed one."""
    kind: Literal["exact", "sampled"] = "exact" if exact else "sampled"
    if math.isnan(difference):
        return Permutation(difference, math.nan, least, len(means), kind, paired)
    # Sums in another order differ in their last bits; equal ones must count as equal.
    slack = 1e-12 * max(1.0, float(np.abs(means).max()))
    beyond = int((np.abs(means) >= abs(difference) - slack).sum())
    p = beyond / len(means) if exact else (beyond + 1) / (len(means) + 1)
    least = least if exact else max(least, 1 / (len(means) + 1))
    return Permutation(difference, min(1.0, p), min(1.0, least), len(means), kind, paired)


def least_pairs(alpha: float = 0.05) -> int:
    """Return how many pairs a permutation test needs before its p can be below `alpha`."""
    return next(n for n in itertools.count(1) if 2.0 ** (1 - n) < alpha)


def least_runs(alpha: float = 0.05) -> int:
    """Return how many runs in each of two groups it needs without pairs."""
    return next(n for n in itertools.count(1) if 2 / math.comb(2 * n, n) < alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false alarm among them is bounded.

    A NaN stays one and is not counted among the tests.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=p_values.__getitem__
    )
    adjusted, highest = list(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted
