"""Bootstrap over examples, for every statistic that is a function of means.

Accuracy is a mean; so is the difference of two accuracies on the same examples. F1, correlation or the
calibration error are functions of a few means. Rows that are equal are drawn together: two models that are
right or wrong make four kinds of rows however many examples there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft_engine.significance.intervals import Estimate

Floats = NDArray[np.floating[Any]]
Statistic = Callable[[Floats], Floats]
"""Takes means (b, m) and returns a value for each row of them (b,)."""

Method = Literal["bca", "percentile"]

BLOCK = 2**21
"""Numbers that are drawn at a time: 16 MB, whatever the number of examples and resamples."""

FEW_KINDS = 20
"""Rows are drawn by their kind if there are so many times fewer kinds than examples."""

MOST_UNDEFINED = 0.05
"""Share of resamples in which the statistic may be undefined before there is no interval."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Bootstrap:
    """What resampling gave.

    Args:
        value: The statistic of the data itself.
        samples: The statistic of every resample, sorted, without undefined ones.
        acceleration: BCa's, from the jackknife.
        resamples: How many were drawn.
        method: How limits are found.
    """

    value: float
    samples: Floats = field(repr=False)
    acceleration: float
    resamples: int
    method: Method

    @property
    def error(self) -> float:
        """Standard error: the standard deviation over resamples (ddof 1)."""
        return float(self.samples.std(ddof=1)) if self._usable else math.nan

    @property
    def p(self) -> float:
        """Two-sided p for a value of zero: twice the smaller share of resamples at or beyond it."""
        if not self._usable:
            return math.nan
        beyond = min((self.samples <= 0).sum(), (self.samples >= 0).sum())
        return float(min(1.0, 2 * (beyond + 1) / (len(self.samples) + 1)))

    def interval(self, level: float = 0.95) -> Estimate:
        """Return the value with its limits; they are NaN where the data does not allow any."""
        if not self._usable:
            return Estimate(self.value, math.nan, math.nan, level)
        tails = ((1 - level) / 2, (1 + level) / 2)
        low, high = np.quantile(self.samples, [self._share(tail) for tail in tails])
        return Estimate(self.value, float(low), float(high), level)

    @property
    def _usable(self) -> bool:
        enough = len(self.samples) >= (1 - MOST_UNDEFINED) * self.resamples
        return enough and math.isfinite(self.value)

    def _share(self, tail: float) -> float:
        """Return which quantile of the samples is the limit of a tail."""
        below = (self.samples < self.value).mean() + (self.samples == self.value).mean() / 2
        if self.method == "percentile" or not 0 < below < 1:
            return tail
        bias, z = _NORMAL.inv_cdf(float(below)), _NORMAL.inv_cdf(tail)
        slope = 1 - self.acceleration * (bias + z)
        return _NORMAL.cdf(bias + (bias + z) / slope) if slope > 0 else tail


def bootstrap(
    rows: ArrayLike,
    statistic: Statistic | None = None,
    *,
    resamples: int = 10_000,
    method: Method = "bca",
    seed: int = 0,
) -> Bootstrap:
    """Resample examples with replacement, and compute a function of means each time.

    With the figures of two models in the same rows, and their difference as the statistic, this is the paired
    bootstrap. The same seed gives the same resamples.

    Args:
        rows: One row an example (n, m), or one number (n,).
        statistic: Function of the means (b, m) of the columns; None for the mean itself.
        resamples: How many.
        method: `bca` (bias-corrected and accelerated) or `percentile`.
        seed: Of the draws.

    Returns:
        Value and resamples. With fewer than two rows, or a NaN, there are no limits.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 14; paired use
    as in P. Koehn, EMNLP 2004.
    """
    table = np.asarray(rows, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    function = statistic or _first_column
    if len(table) == 0:
        return Bootstrap(math.nan, np.empty(0), 0.0, resamples, method)
    if not np.isfinite(table).all():
        return Bootstrap(math.nan, np.empty(0), 0.0, resamples, method)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(function(table.mean(axis=0, keepdims=True))[0])
    if len(table) < 2:  # noqa: PLR2004 (one example has no spread)
        return Bootstrap(value, np.empty(0), 0.0, resamples, method)
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = [function(means) for means in _resampled(distinct, counts, resamples, seed)]
        acceleration = _acceleration(distinct, counts, function) if method == "bca" else 0.0
    samples = np.sort(np.concatenate(drawn))
    return Bootstrap(value, samples[np.isfinite(samples)], acceleration, resamples, method)


def _first_column(means: Floats) -> Floats:
    return means[:, 0]


def _resampled(
    distinct: Floats, counts: NDArray[np.int64], resamples: int, seed: int
) -> Iterator[Floats]:
    """Yield the means of resamples in blocks; how large these are does not change what is drawn."""
    rng, total = np.random.default_rng(seed), int(counts.sum())
    # Counting how often each kind is drawn is quick for few kinds, drawing examples for many.
    few = len(counts) * FEW_KINDS < total
    kind_of = np.repeat(np.arange(len(counts)), counts)
    size = max(1, BLOCK // (len(counts) if few else total))
    for start in range(0, resamples, size):
        block = min(size, resamples - start)
        if few:
            weights = rng.multinomial(total, counts / total, size=block)
            yield weights.astype(np.float64) @ distinct / total
            continue
        kinds = kind_of[rng.integers(0, total, size=(block, total))]
        if distinct.shape[1] == 1:
            yield distinct[kinds, 0].mean(axis=1, keepdims=True)
            continue
        places = kinds + len(counts) * np.arange(block)[:, None]
        weights = np.bincount(places.ravel(), minlength=block * len(counts))
        yield weights.reshape(block, -1).astype(np.float64) @ distinct / total


def _acceleration(distinct: Floats, counts: NDArray[np.int64], function: Statistic) -> float:
    """Return BCa's acceleration from the jackknife over examples."""
    total = counts.sum()
    sums = counts @ distinct
    without = function((sums - distinct) / (total - 1))
    gaps = (counts * without).sum() / total - without
    spread = float((counts * gaps**2).sum())
    if not math.isfinite(spread) or spread == 0:
        return 0.0
    return float((counts * gaps**3).sum() / (6 * spread**1.5))
