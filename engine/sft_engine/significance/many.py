"""Tests of three or more methods over the same blocks: seeds, data sets or examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEAST_METHODS = 3
LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Friedman:
    """Whether methods differ at all.

    Args:
        statistic: Chi-squared with methods - 1 degrees of freedom, corrected for ties.
        p: Of the chi-squared approximation.
        p_f: Of Iman and Davenport's F, which is less timid with few blocks.
        mean_ranks: Of each method; 1 is best.
        blocks: Over how many blocks.
    """

    statistic: float
    p: float
    p_f: float
    mean_ranks: tuple[float, ...]
    blocks: int


@dataclass(frozen=True)
class Nemenyi:
    """Which methods differ from which.

    Args:
        critical_difference: Mean ranks that are further apart differ at the level.
        alpha: The level.
        p: For each pair (methods, methods), over all pairs at once.
    """

    critical_difference: float
    alpha: float
    p: tuple[tuple[float, ...], ...]


def friedman(scores: ArrayLike, *, larger_is_better: bool = True) -> Friedman:
    """Rank methods within each block, and test whether their mean ranks are equal.

    On zeros and ones, such as right and wrong, this is Cochran's Q.

    Source: M. Friedman, JASA 32 (1937) 675-701; F by R. L. Iman, J. M. Davenport, Comm. Stat. A9 (1980)
    571-595; use for methods as in J. Demšar, JMLR 7 (2006) 1-30.

    Args:
        scores: One row a block, one column a method (blocks, methods).
        larger_is_better: Whether rank 1 goes to the largest.

    Raises:
        ValueError: there are fewer than three methods or two blocks.
    """
    from scipy import stats

    table = _table(scores)
    blocks, methods = table.shape
    if np.isnan(table).any():
        return Friedman(math.nan, math.nan, math.nan, (math.nan,) * methods, blocks)
    ranks = stats.rankdata(-table if larger_is_better else table, axis=1)
    means = ranks.mean(axis=0)
    # The spread of ranks that ties have left; all tied in every block leaves nothing to test.
    spread = float((ranks**2).sum() / blocks - methods * (methods + 1) ** 2 / 4)
    if spread <= 0:
        return Friedman(0.0, 1.0, 1.0, tuple(means.tolist()), blocks)
    between = float(((means - (methods + 1) / 2) ** 2).sum())
    statistic = blocks * (methods - 1) * between / spread
    limit = blocks * (methods - 1)
    f = (blocks - 1) * statistic / (limit - statistic) if statistic < limit else math.inf
    return Friedman(
        statistic,
        float(stats.chi2.sf(statistic, methods - 1)),
        float(stats.f.sf(f, methods - 1, (blocks - 1) * (methods - 1))),
        tuple(means.tolist()),
        blocks,
    )


def nemenyi(scores: ArrayLike, *, alpha: float = 0.05, larger_is_better: bool = True) -> Nemenyi:
    """Compare mean ranks pairwise, by the studentised range; to be used after `friedman`.

    Timid where there are many ties.

    Source: P. Nemenyi, Distribution-free Multiple Comparisons (1963); J. Demšar, JMLR 7 (2006), section 3.2.2.

    Raises:
        ValueError: there are fewer than three methods or two blocks.
    """
    from scipy.stats import studentized_range

    table = _table(scores)
    blocks, methods = table.shape
    unit = math.sqrt(methods * (methods + 1) / (6 * blocks))
    critical = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2) * unit
    means = np.array(friedman(table, larger_is_better=larger_is_better).mean_ranks)
    gaps = np.abs(means[:, None] - means) / unit * math.sqrt(2)
    p = np.ones((methods, methods))
    for i in range(methods):
        for j in range(i):
            p[i, j] = p[j, i] = float(studentized_range.sf(gaps[i, j], methods, np.inf))
    return Nemenyi(critical, alpha, tuple(tuple(row) for row in p.clip(max=1.0).tolist()))


def _table(scores: ArrayLike) -> np.ndarray:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < LEAST_BLOCKS or table.shape[1] < LEAST_METHODS:  # noqa: PLR2004
        raise ValueError(
            f"scores of shape {table.shape}: needs {LEAST_BLOCKS} blocks and {LEAST_METHODS} methods"
        )
    return table
