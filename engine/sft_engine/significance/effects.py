"""Effect sizes with intervals: how large a difference is, in units that do not depend on the metric."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft_engine.significance.intervals import Estimate, z_of

Floats = NDArray[np.floating[Any]]


def cohen_h(
    first: float, first_total: int, second: float, second_total: int, level: float = 0.95
) -> Estimate:
    """Return Cohen's h of two proportions, the distance of their arcsines, with its normal interval.

    0.2 is small, 0.5 medium, 0.8 large. The interval is that of independent samples.

    Source: J. Cohen, Statistical Power Analysis (1988), chapter 6.

    Args:
        first: A proportion, 0..1.
        first_total: Of how many.
        second: The other proportion.
        second_total: Of how many.
        level: Of the interval.
    """
    value = 2 * (math.asin(math.sqrt(first)) - math.asin(math.sqrt(second)))
    if 0 in (first_total, second_total):
        return Estimate(value, math.nan, math.nan, level)
    half = z_of(level) * math.sqrt(1 / first_total + 1 / second_total)
    return Estimate(value, value - half, value + half, level)


def cohen_d(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Estimate:
    """Return Cohen's d of two groups, in units of their pooled standard deviation.

    The interval comes from the noncentral t distribution. All is NaN where a group has fewer than two
    values, or nothing varies.

    Source: J. Cohen (1988), chapter 2; interval by J. H. Steiger, R. T. Fouladi (1997).
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    freedom = len(one) + len(two) - 2
    if min(len(one), len(two)) < 2:  # noqa: PLR2004
        return Estimate(math.nan, math.nan, math.nan, level)
    squares = ((one - one.mean()) ** 2).sum() + ((two - two.mean()) ** 2).sum()
    factor = math.sqrt(len(one) * len(two) / (len(one) + len(two)))
    return _standardised(float(one.mean() - two.mean()), squares / freedom, freedom, factor, level)


def hedges_g(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Estimate:
    """Return Hedges' g: Cohen's d without its bias in small groups, with the interval scaled alike.

    Source: L. V. Hedges, Journal of Educational Statistics 6 (1981) 107-128, exact correction.
    """
    d = cohen_d(first, second, level)
    freedom = np.size(first) + np.size(second) - 2
    factor = hedges_factor(freedom) if freedom > 1 else math.nan
    return Estimate(d.value * factor, d.low * factor, d.high * factor, level)


def hedges_factor(freedom: float) -> float:
    """Return what takes the bias out of d: Γ(n/2) / (√(n/2) Γ((n - 1)/2)), n the freedom."""
    logarithm = math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)
    return math.exp(logarithm) / math.sqrt(freedom / 2)


def cohen_dz(differences: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean of paired differences in units of their own standard deviation.

    All is NaN with fewer than two pairs, or where all differences are equal.

    Source: J. Cohen (1988), section 2.3.5; interval from the noncentral t distribution.
    """
    gaps = np.asarray(differences, dtype=np.float64)
    if len(gaps) < 2:  # noqa: PLR2004
        return Estimate(math.nan, math.nan, math.nan, level)
    variance = float(gaps.var(ddof=1))
    return _standardised(float(gaps.mean()), variance, len(gaps) - 1, math.sqrt(len(gaps)), level)


def _standardised(
    gap: float, variance: float, freedom: int, factor: float, level: float
) -> Estimate:
    """Divide by the standard deviation; `factor` turns the result into a t statistic."""
    if not variance > 1e-24 * max(gap * gap, 1e-280):  # constant up to rounding, or NaN
        return Estimate(math.nan, math.nan, math.nan, level)
    value = gap / math.sqrt(variance)
    low, high = noncentrality(value * factor, freedom, level)
    return Estimate(value, low / factor, high / factor, level)


def noncentrality(t: float, freedom: float, level: float = 0.95) -> tuple[float, float]:
    """Return the limits of the noncentrality of a t statistic, by inverting its distribution.

    NaN where the search does not end: for a t statistic in the hundreds.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct

    def limit(share: float) -> float:
        def gap(parameter: float) -> float:
            return float(nct.cdf(t, freedom, parameter)) - share

        width = 4.0 + abs(t)
        try:
            return float(brentq(gap, t - width, t + width, xtol=1e-9))
        except ValueError:
            return math.nan

    return limit((1 + level) / 2), limit((1 - level) / 2)


def cliffs_delta(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Estimate:
    """Return how much more often the first is above the second than below: -1 to 1, by pairs of values.

    Asks nothing of the distribution. 0.147 is small, 0.33 medium, 0.474 large.

    Source: N. Cliff, Psychological Bulletin 114 (1993) 494-509; the interval, which does not leave -1..1, by
    D. Feng, N. Cliff, J. Modern Applied Statistical Methods 3 (2004) 322-332. Groups that do not overlap
    have no variance: then Wilson's interval for the smaller group, all of which is on one side.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    signs = np.sign(one[:, None] - two)
    sizes = signs.shape
    if min(sizes) < 2 or np.isnan(signs).any():  # noqa: PLR2004
        value = float(signs.mean()) if signs.size else math.nan
        return Estimate(value, math.nan, math.nan, level)
    value, z = float(signs.mean()), z_of(level)
    if abs(value) == 1:
        edge = (min(sizes) - z * z) / (min(sizes) + z * z)
        return Estimate(value, edge if value > 0 else -1.0, 1.0 if value > 0 else -edge, level)
    spread = _delta_variance(signs)
    room = 1 - value * value
    half = z * math.sqrt(spread) * math.sqrt(room * room + z * z * spread)
    low, high = ((value - value**3 + s * half) / (room + z * z * spread) for s in (-1, 1))
    return Estimate(value, max(low, -1.0), min(high, 1.0), level)


def _delta_variance(signs: Floats) -> float:
    """Return the unbiased variance of delta, not below the least that there can be."""
    m, n = signs.shape
    value = float(signs.mean())
    rows = ((signs.mean(axis=1) - value) ** 2).sum()
    columns = ((signs.mean(axis=0) - value) ** 2).sum()
    cells = ((signs - value) ** 2).sum()
    unbiased = (n * n * rows + m * m * columns - cells) / (m * n * (m - 1) * (n - 1))
    return float(max(unbiased, (1 - value * value) / (m * n - 1)))
