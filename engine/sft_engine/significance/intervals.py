"""A value between two limits, and the intervals of proportions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Args:
        value: The estimate itself.
        low: Lower limit; NaN where the data does not allow one.
        high: Upper limit.
        level: Share of intervals made this way that hold the true value.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside of the limits; never where there are none."""
        return self.low > 0 or self.high < 0


def z_of(level: float) -> float:
    """Return the normal quantile of a two-sided level: 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"level {level}: must be between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(successes: float, total: int, level: float = 0.95) -> Estimate:
    """Return a proportion with Wilson's score interval, which holds for few trials and at 0 and 1.

    Source: E. B. Wilson, JASA 22 (1927) 209-212; without continuity correction.

    Raises:
        ValueError: there are more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}")
    if total == 0:
        return Estimate(math.nan, 0.0, 1.0, level)
    z, share = z_of(level), successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = (
        z
        / (1 + z * z / total)
        * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    )
    # At the ends rounding must not leave the last bit open.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == total else min(1.0, middle + half)
    return Estimate(share, low, high, level)


def difference_of_proportions(
    first: float, first_total: int, second: float, second_total: int, level: float = 0.95
) -> Estimate:
    """Return first minus second proportion of independent samples, with Newcombe's interval.

    For two models on the same examples it is wider than the paired interval as long as they tend to err
    on the same ones.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10.
    """
    one, two = wilson(first, first_total, level), wilson(second, second_total, level)
    gap = one.value - two.value
    below = math.hypot(one.value - one.low, two.high - two.value)
    above = math.hypot(one.high - one.value, two.value - two.low)
    return Estimate(gap, gap - below, gap + above, level)
