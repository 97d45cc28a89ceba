"""What a range test measured, smoothed, and what it suggests: pure functions of learning rates and losses.

The range test is Smith's (2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3); the
suggestions are those that fast.ai made common.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

Suggestion = Literal["valley", "steepest", "minimum"]
SUGGESTIONS: tuple[Suggestion, ...] = get_args(Suggestion)

FEWEST = 10
"""Points below which a curve is too short to suggest anything."""
_DIVISOR = 10.0


@dataclass
class Smoother:
    """An exponential moving average whose start is not drawn towards 0.

    The average of the first n values is divided by 1 - weight**n, as Adam does with its moments
    (Kingma and Ba 2015, section 3), so a constant stays that constant.

    Args:
        weight: Of what came before, 0 to below 1; 0 does not smooth.
    """

    weight: float
    _sum: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)

    def add(self, value: float) -> float:
        """Take in a value; return the average so far."""
        self._count += 1
        self._sum = self.weight * self._sum + (1 - self.weight) * value
        return self._sum / (1 - self.weight**self._count)


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Return the bias-corrected moving average at every value."""
    smoother = Smoother(weight)
    return [smoother.add(value) for value in values]


def rate_at(step: int, steps: int, lowest: float, highest: float) -> float:
    """Return the learning rate of a step: equal factors from `lowest` (step 0) to `highest` (the last)."""
    share = step / (steps - 1) if steps > 1 else 0.0
    return float(lowest * (highest / lowest) ** share)


def valley(losses: Sequence[float]) -> int | None:
    """Return the index in the middle of the longest fall, or None if the loss never falls.

    The fall is the longest strictly decreasing subsequence (short bumps do not end it); it is taken to
    begin as many points before its end as it is long.
    """
    end, length = _longest_fall(losses)
    return None if length <= 1 else end - (length - 1) // 2


def _longest_fall(losses: Sequence[float]) -> tuple[int, int]:
    """Return the index at which the longest strictly decreasing subsequence ends, and its length."""
    ends: list[float] = []  # ends[k] = minus the largest loss that ends a fall of k + 1 points
    best = (0, 0)
    for index, loss in enumerate(losses):
        place = bisect_left(ends, -loss)
        ends[place : place + 1] = [-loss]
        if place + 1 > best[1]:
            best = (index, place + 1)
    return best


def steepest(lrs: Sequence[float], losses: Sequence[float], skip: int = 0) -> int | None:
    """Return the index before the minimum at which the loss falls fastest against log(lr), or None.

    Args:
        lrs: Learning rates, rising.
        losses: Smoothed losses.
        skip: First points to leave out: a moving average of few values is not smooth yet.
    """
    lowest = int(np.argmin(losses))
    if lowest <= skip:
        return None
    slopes = np.gradient(np.asarray(losses, dtype=float), np.log(np.asarray(lrs, dtype=float)))
    index = skip + int(np.argmin(slopes[skip : lowest + 1]))
    return index if slopes[index] < 0 else None


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> dict[Suggestion, float]:
    """Return the learning rates that a smoothed curve suggests, rounded to two digits.

    `valley` is the middle of the longest fall, `steepest` where the loss falls fastest, `minimum` a
    tenth of where it is lowest. Empty if the curve is short, or the loss never got below its start.
    """
    if len(losses) < FEWEST or min(losses) >= losses[0]:
        return {}
    found: dict[Suggestion, float | None] = {
        "valley": _at(lrs, valley(losses)),
        "steepest": _at(lrs, steepest(lrs, losses, skip=len(losses) // 10)),
        "minimum": lrs[int(np.argmin(losses))] / _DIVISOR,
    }
    return {name: two_digits(lr) for name, lr in found.items() if lr is not None}


def _at(lrs: Sequence[float], index: int | None) -> float | None:
    return None if index is None else lrs[index]


def two_digits(value: float) -> float:
    """Round to two significant digits: the test does not know more."""
    return float(f"{value:.1e}")


def explodes(loss: float, best: float, factor: float) -> bool:
    """Say whether a smoothed loss is not finite, or `factor` times as large as the best one so far."""
    return not math.isfinite(loss) or loss > factor * abs(best)
