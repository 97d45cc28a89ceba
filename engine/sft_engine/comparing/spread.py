"""Whether groups of runs scatter equally, and how many runs it would take to know."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sft_engine.comparing.verdicts import interval, p_text
from sft_engine.console_lines import number
from sft_engine.significance.intervals import Estimate
from sft_engine.significance.spread import (
    brown_forsythe,
    detectable_sd_ratio,
    runs_for_sd_ratio,
    sd_ratio,
)

POWER = 0.8
LEAST_RUNS = 3
"""Two values are equally far from their median, so their spread cannot be compared."""


@dataclass(frozen=True)
class SpreadOfPair:
    """The spread of one group against another's.

    Args:
        wider: Name of the group with the larger standard deviation.
        narrower: The other.
        ratio: Of standard deviations, wider through narrower, with the F interval of normal samples.
        needed_ratio: Which ratio so many runs would have to show (one-sided F, 5 %).
        needed_runs: How many runs each it takes to find a true ratio of this size four times in five; None if
            they scatter alike.
    """

    wider: str
    narrower: str
    ratio: Estimate
    needed_ratio: float
    needed_runs: int | None


@dataclass(frozen=True)
class Spread:
    """The spread of all groups that have enough runs.

    Args:
        p: Of Brown and Forsythe's test.
        statistic: Its F.
        pairs: Two by two.
        sentence: What follows, in words.
    """

    p: float
    statistic: float
    pairs: tuple[SpreadOfPair, ...]
    sentence: str


def compare_spread(
    scores: Mapping[str, Sequence[float]], alpha: float, *, shared: bool = False
) -> Spread | None:
    """Compare the spread of groups with three runs and more; None unless two have them.

    Args:
        scores: Of each group's runs.
        alpha: The level.
        shared: Whether runs of a group share training data or seeds, which the test does not know.
    """
    groups = {name: values for name, values in scores.items() if len(values) >= LEAST_RUNS}
    if len(groups) < 2:  # noqa: PLR2004
        return None
    test = brown_forsythe(list(groups.values()))
    pairs = tuple(
        _of_pair(one, two, groups, alpha) for one, two in itertools.combinations(groups, 2)
    )
    sentence = _sentence(test.p, pairs, alpha)
    if shared:
        sentence += " Runs of a study share training data and seeds: take this p for a rough one."
    return Spread(test.p, test.statistic, pairs, sentence)


def _of_pair(
    one: str, two: str, groups: Mapping[str, Sequence[float]], alpha: float
) -> SpreadOfPair:
    ratio = sd_ratio(groups[one], groups[two])
    if ratio.value < 1:
        one, two = two, one
        ratio = Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, ratio.level)
    needed = detectable_sd_ratio(len(groups[one]), len(groups[two]), alpha=alpha)
    runs = runs_for_sd_ratio(ratio.value, alpha=alpha, power=POWER)
    return SpreadOfPair(one, two, ratio, needed, runs)


def _sentence(p: float, pairs: Sequence[SpreadOfPair], alpha: float) -> str:
    if math.isnan(p):
        return "The spread over runs cannot be compared: scores are missing, or do not vary."
    test = f"Brown-Forsythe {p_text(p)}"
    if p <= alpha and len(pairs) == 1:
        pair = pairs[0]
        return (
            f"The scores of {pair.wider} scatter more than those of {pair.narrower}: standard deviations "
            f"are as {number(pair.ratio.value)} to 1 ({interval(pair.ratio)}); {test}."
        )
    if p <= alpha:
        return f"The groups do not all scatter alike: {test}."
    return " ".join(
        [f"No difference in spread is shown, and none is ruled out: {test}."]
        + [_needed(pair) for pair in pairs]
    )


def _needed(pair: SpreadOfPair) -> str:
    if math.isnan(pair.ratio.value):
        return f"{pair.wider} or {pair.narrower} does not scatter at all."
    runs = (
        f"about {pair.needed_runs} runs each would be needed for a difference of this size"
        if pair.needed_runs is not None
        else "they scatter alike"
    )
    return (
        f"{pair.wider} to {pair.narrower}: {number(pair.ratio.value)} to 1, where so few runs show "
        f"{number(pair.needed_ratio)} to 1 at the least; {runs}."
    )
