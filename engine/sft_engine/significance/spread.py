"""How runs of one recipe scatter: their spread, their worst, the ones that failed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_engine.significance.intervals import Estimate, wilson

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

WORST = 0.2
"""Share of runs that CVaR looks at."""

MOST_RUNS = 1_000_000


@dataclass(frozen=True)
class Summary:
    """The scores of the runs of one recipe.

    Args:
        runs: How many.
        mean: Their mean; NaN if one is NaN, as all of the following.
        sd: Standard deviation (ddof 1); NaN for a single run.
        least: Smallest.
        largest: Largest.
        iqr: Third minus first quartile.
        worst: The worst of them.
        cvar: Mean of the worst fifth.
    """

    runs: int
    mean: float
    sd: float
    least: float
    largest: float
    iqr: float
    worst: float
    cvar: float


def summary(scores: ArrayLike, *, larger_is_better: bool = True) -> Summary:
    """Describe the scores of runs; a failed run's NaN makes all but their number NaN.

    Raises:
        ValueError: there are none.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no scores")
    first, third = np.quantile(values, [0.25, 0.75])
    return Summary(
        runs=len(values),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        least=float(values.min()),
        largest=float(values.max()),
        iqr=float(third - first),
        worst=float(values.min() if larger_is_better else values.max()),
        cvar=cvar(values, larger_is_better=larger_is_better),
    )


def cvar(scores: ArrayLike, share: float = WORST, *, larger_is_better: bool = True) -> float:
    """Return the mean of the worst share of runs (conditional value at risk).

    If the share is no whole number of runs, the last of them counts in part; below one run it is the worst.

    Source: R. T. Rockafellar, S. Uryasev, Journal of Banking & Finance 26 (2002) 1443-1471, for a sample.

    Raises:
        ValueError: there are no scores, or the share is not in (0, 1].
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) == 0 or not 0 < share <= 1:
        raise ValueError(f"{len(values)} scores, share {share}")
    if np.isnan(values).any():
        return math.nan
    worst_first = np.sort(values) if larger_is_better else -np.sort(-values)
    # Of 20 runs a fifth is four, although 0.2 * 20 may be a little more or less in binary.
    amount = round(share * len(values), 9)
    weights = np.clip(amount - np.arange(len(values)), 0, 1)
    return float(weights @ worst_first / weights.sum())


def failed_run_rate(
    scores: ArrayLike,
    majority: float,
    tolerance: float = 0.0,
    *,
    larger_is_better: bool = True,
    level: float = 0.95,
) -> Estimate:
    """Return the share of runs that are no better than a constant answer, with Wilson's interval.

    A run whose score is NaN has failed.

    Source: M. Mosbach, M. Andriushchenko, D. Klakow, ICLR 2021, "failed run": final score at most that of the
    majority class.

    Args:
        scores: Of each run.
        majority: What answering the most frequent class, or the mean, would score.
        tolerance: How much better still counts as failed.
        larger_is_better: Of the score.
        level: Of the interval.
    """
    values = np.asarray(scores, dtype=np.float64)
    gain = values - majority if larger_is_better else majority - values
    # 0.51 is 0.01 above 0.5, although in binary it is a little more.
    return wilson(int((~(gain > tolerance + 1e-12)).sum()), len(values), level)


@dataclass(frozen=True)
class BrownForsythe:
    """Whether groups scatter equally.

    Args:
        statistic: F.
        p: Its p-value; NaN where a group has fewer than two values, or nothing varies.
    """

    statistic: float
    p: float


def brown_forsythe(groups: Sequence[ArrayLike]) -> BrownForsythe:
    """Test whether groups have the same spread: analysis of variance of distances from the median.

    Source: M. B. Brown, A. B. Forsythe, JASA 69 (1974) 364-367 (Levene's test, centred at the median).

    Raises:
        ValueError: there are fewer than two groups.
    """
    from scipy.stats import f

    values = [np.asarray(group, dtype=np.float64) for group in groups]
    if len(values) < 2:  # noqa: PLR2004
        raise ValueError(f"{len(values)} groups: the spread of at least two can be compared")
    distances = [np.abs(each - np.median(each)) for each in values if len(each)]
    total = sum(map(len, values))
    if min(map(len, values)) < 2 or total <= len(values):  # noqa: PLR2004
        return BrownForsythe(math.nan, math.nan)
    middle = np.concatenate(distances).mean()
    between = sum(len(d) * (d.mean() - middle) ** 2 for d in distances) / (len(values) - 1)
    within = sum(((d - d.mean()) ** 2).sum() for d in distances) / (total - len(values))
    # Two values are equally far from their median: groups of two have no spread of distances.
    if not within > 1e-24 * max(middle * middle, 1e-280):
        return BrownForsythe(math.nan, math.nan)
    statistic = float(between / within)
    return BrownForsythe(statistic, float(f.sf(statistic, len(values) - 1, total - len(values))))


def sd_ratio(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the ratio of two standard deviations, with the F interval of normal samples.

    All is NaN where a group has fewer than two values or does not vary.
    """
    from scipy.stats import f

    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(one), len(two)) < 2:  # noqa: PLR2004
        return Estimate(math.nan, math.nan, math.nan, level)
    spreads = float(one.std(ddof=1)), float(two.std(ddof=1))
    if not min(spreads) > 0:
        return Estimate(math.nan, math.nan, math.nan, level)
    value, freedom = spreads[0] / spreads[1], (len(one) - 1, len(two) - 1)
    high, low = f.ppf([(1 - level) / 2, (1 + level) / 2], *freedom)
    return Estimate(value, value / math.sqrt(low), value / math.sqrt(high), level)


def detectable_sd_ratio(
    first: int, second: int, *, alpha: float = 0.05, power: float | None = None
) -> float:
    """Return which ratio of standard deviations so many runs can show, by the one-sided F test.

    Without a power this is the ratio that has to be *observed*: 2.53 with 5 runs against 5, 1.78 with 10
    against 10, 1.47 with 20 against 20. With a power it is the true ratio that would be found that often.

    Raises:
        ValueError: a group has fewer than two runs.
    """
    from scipy.stats import f

    if min(first, second) < 2:  # noqa: PLR2004
        raise ValueError(f"{first} and {second} runs: a spread needs two")
    freedom = first - 1, second - 1
    ratio = float(f.ppf(1 - alpha, *freedom))
    if power is not None:
        ratio /= float(f.ppf(1 - power, *freedom))
    return math.sqrt(ratio)


def runs_for_sd_ratio(
    ratio: float, *, alpha: float = 0.05, power: float | None = None
) -> int | None:
    """Return how many runs a group are needed to show a ratio of standard deviations.

    Args:
        ratio: Larger through smaller; below 1 its inverse is taken.
        alpha: Of the one-sided F test.
        power: As in `detectable_sd_ratio`.

    Returns:
        None if a million do not suffice.
    """
    wanted = max(ratio, 1 / ratio) if ratio > 0 else math.inf

    def enough(runs: int) -> bool:
        return detectable_sd_ratio(runs, runs, alpha=alpha, power=power) <= wanted

    if math.isnan(ratio) or not enough(MOST_RUNS):
        return None
    high = next(2**k for k in itertools.count(1) if enough(2**k))
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle >= 2 and enough(middle) else (middle, high)  # noqa: PLR2004
    return int(high)
