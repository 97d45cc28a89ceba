from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sft_engine.significance.effects import (
    cliffs_delta,
    cohen_d,
    cohen_dz,
    cohen_h,
    hedges_factor,
    hedges_g,
)

RNG = np.random.default_rng(4)
A, B = RNG.normal(1, 1, 12), RNG.normal(0, 1, 9)


def test_cohen_h_by_hand():
    # Cohen 1988, table 6.2.2: φ(.65) = 1.875, φ(.50) = 1.571.
    found = cohen_h(0.65, 100, 0.5, 50)
    assert found.value == pytest.approx(1.875 - 1.571, abs=1e-3)
    assert found.high - found.value == pytest.approx(1.959964 * math.sqrt(1 / 100 + 1 / 50))
    assert cohen_h(1.0, 5, 0.0, 5).value == pytest.approx(math.pi)
    assert math.isnan(cohen_h(0.5, 0, 0.5, 5).low)


def test_cohen_d_goes_with_the_t_test():
    found = cohen_d(A, B)
    t = stats.ttest_ind(A, B)
    factor = math.sqrt(12 * 9 / 21)
    assert found.value * factor == pytest.approx(t.statistic)
    # The limits of the noncentrality leave the tails on either side.
    assert stats.nct.sf(t.statistic, 19, found.low * factor) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t.statistic, 19, found.high * factor) == pytest.approx(0.025, abs=1e-6)
    assert cohen_d(A, B, 1 - t.pvalue).low == pytest.approx(0, abs=1e-6)


def test_hedges_g_has_the_exact_correction():
    assert hedges_factor(10) == pytest.approx(0.9228, abs=1e-4)  # 1 - 3 / (4 * 10 - 1) is 0.9231
    d, g = cohen_d(A, B), hedges_g(A, B)
    for name in ("value", "low", "high"):
        assert getattr(g, name) == pytest.approx(getattr(d, name) * hedges_factor(19))


def test_cohen_dz_goes_with_the_paired_t_test():
    gaps = A[:9] - B
    found, t = cohen_dz(gaps), stats.ttest_rel(A[:9], B)
    assert found.value * 3 == pytest.approx(t.statistic)
    assert cohen_dz(gaps, 1 - t.pvalue).low == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("effect", [cohen_d, hedges_g])
def test_too_few_or_constant_groups_have_no_standardised_effect(effect):
    for a, b in [([1.0], [2.0, 3.0]), ([0.1, 0.1], [0.3, 0.3]), ([1, math.nan], [0, 1])]:
        found = effect(a, b)
        assert math.isnan(found.value)
        assert math.isnan(found.low)
    for gaps in ([1.0], [0.1] * 3, [], [math.nan, 1]):
        assert math.isnan(cohen_dz(gaps).value)


def test_cliffs_delta_is_that_of_the_rank_sum():
    found = cliffs_delta(A, B)
    u = stats.mannwhitneyu(A, B).statistic
    assert found.value == pytest.approx(2 * u / (12 * 9) - 1)
    assert -1 <= found.low < found.value < found.high <= 1
    swapped = cliffs_delta(B, A)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_cliffs_delta_by_hand():
    # Pairs of 1, 2, 3 with 2, 2, 0: signs -1 -1 1 | 0 0 1 | 1 1 1.
    found = cliffs_delta([1, 2, 3], [2, 2, 0])
    delta = 3 / 9
    rows = sum((x - delta) ** 2 for x in (-1 / 3, 1 / 3, 1))
    columns = sum((x - delta) ** 2 for x in (0, 0, 1))
    cells = 7 - 9 * delta**2
    variance = (9 * rows + 9 * columns - cells) / (9 * 4)
    z2 = 1.959963984540054**2
    half = math.sqrt(z2 * variance * ((1 - delta**2) ** 2 + z2 * variance))
    assert found.value == pytest.approx(delta)
    assert found.low == pytest.approx(
        max(-1, (delta - delta**3 - half) / (1 - delta**2 + z2 * variance))
    )


def test_groups_that_do_not_overlap_still_have_a_limit():
    found = cliffs_delta([5, 6, 7, 8], [1, 2, 3])
    z2 = 1.959963984540054**2
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx((3 - z2) / (3 + z2))
    assert cliffs_delta([1, 2, 3], [5, 6, 7, 8]).high == pytest.approx(-found.low)


def test_cliffs_delta_of_ties_and_of_too_few():
    same = cliffs_delta([1, 1, 1], [1, 1])
    assert same.value == 0
    assert same.low < 0 < same.high
    assert math.isnan(cliffs_delta([1], [2, 3]).low)
    assert cliffs_delta([1], [2, 3]).value == -1
    assert math.isnan(cliffs_delta([], [1]).value)
    assert math.isnan(cliffs_delta([1, math.nan], [1, 2]).value)


def test_the_limits_of_cliffs_delta_hold_what_they_promise():
    hits, trials, rng = 0, 400, np.random.default_rng(0)
    truth = 2 * stats.norm.cdf(0.8 / math.sqrt(2)) - 1
    for _ in range(trials):
        found = cliffs_delta(rng.normal(0.8, 1, 15), rng.normal(0, 1, 15))
        hits += found.low <= truth <= found.high
    assert 0.91 < hits / trials < 0.985
