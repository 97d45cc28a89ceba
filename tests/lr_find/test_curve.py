"""Smoothing and suggestions against curves whose answer is known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sft_engine.lr_range.curve import (
    explodes,
    rate_at,
    smooth,
    steepest,
    suggest,
    two_digits,
    valley,
)

LRS = [rate_at(i, 101, 1e-6, 1e-1) for i in range(101)]  # 20 points a decade
X = np.log10(LRS)


def sigmoid_fall(centre: float, sharpness: float = 4.0) -> list[float]:
    """Fall from 1 to 0 along a logistic curve in log10(lr): steepest at its centre."""
    return (1 / (1 + np.exp(sharpness * (X - centre)))).tolist()


def test_rates_rise_by_equal_factors():
    assert LRS[0] == 1e-6
    assert LRS[-1] == pytest.approx(1e-1, rel=1e-12)
    factors = [b / a for a, b in itertools.pairwise(LRS)]
    assert factors == pytest.approx([10 ** (1 / 20)] * 100, rel=1e-9)


def test_a_smoothed_constant_is_that_constant_from_the_first_value_on():
    assert smooth([3.0] * 20, 0.98) == pytest.approx([3.0] * 20, rel=1e-12)


def test_smoothing_is_the_weighted_mean_of_all_values_so_far():
    values = np.random.default_rng(0).normal(size=30)
    for n, found in enumerate(smooth(values.tolist(), 0.9), start=1):
        weights = 0.9 ** np.arange(n - 1, -1, -1)
        assert found == pytest.approx(float(np.average(values[:n], weights=weights)), rel=1e-10)


def test_without_weight_nothing_is_smoothed():
    assert smooth([1.0, 5.0, -2.0], 0.0) == [1.0, 5.0, -2.0]


@pytest.mark.parametrize("centre", [-4.5, -3.0, -2.0])
def test_the_steepest_point_of_a_logistic_fall_is_its_centre(centre):
    index = steepest(LRS, sigmoid_fall(centre))
    assert X[index] == pytest.approx(centre, abs=0.5 / 20)


def test_the_steepest_point_is_looked_for_before_the_minimum():
    fall_rise_fall = [1.0, 0.9, 0.8, 0.1, 5.0, 9.0, 2.0, 1.0]
    assert steepest(LRS[:8], fall_rise_fall) == 2  # from 0.9 to 0.1, not from 9 to 1


def test_a_curve_that_only_rises_has_no_suggestion():
    assert steepest(LRS, X.tolist()) is None
    assert valley(X.tolist()) is None
    assert suggest(LRS, (X**2 * -1).tolist()) == {}


def test_the_valley_is_the_middle_of_the_longest_fall():
    flat_fall_rise = [2.0] * 30 + [2.0 - 0.05 * i for i in range(1, 31)] + [3.0] * 41
    # 31 points fall: the last flat one, index 29, to the lowest, 59
    assert valley(flat_fall_rise) == 29 + 15


def test_short_bumps_do_not_end_the_valley():
    fall = [10.0 - i for i in range(10)]
    bumped = [*fall[:5], 20.0, *fall[5:]]
    assert valley(bumped) == 10 - 9 // 2
    assert bumped[valley(bumped)] < 20


def test_a_tenth_of_the_minimum_of_a_parabola_in_the_logarithm():
    losses = ((X + 2.0) ** 2).tolist()
    found = suggest(LRS, losses)
    assert found["minimum"] == pytest.approx(1e-3)
    # Slope 2 (x + 2) is steepest where it begins; the first tenth of the points is left out.
    assert found["steepest"] == pytest.approx(LRS[10], rel=0.05)
    # It falls from x = -6 to -2, index 0 to 80.
    assert found["valley"] == pytest.approx(1e-4)


def test_short_curves_suggest_nothing():
    assert suggest(LRS[:9], sigmoid_fall(-4.5)[:9]) == {}


@pytest.mark.parametrize(("value", "rounded"), [(0.001234, 0.0012), (9.96e-5, 1e-4), (3.0, 3.0)])
def test_suggestions_have_two_digits(value, rounded):
    assert two_digits(value) == rounded


def test_what_an_explosion_is():
    assert explodes(4.1, 1.0, 4.0)
    assert not explodes(3.9, 1.0, 4.0)
    assert explodes(math.nan, 1.0, 4.0)
    assert explodes(math.inf, 1.0, 4.0)
