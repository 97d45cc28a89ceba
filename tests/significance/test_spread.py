from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sft_engine.significance.spread import (
    brown_forsythe,
    cvar,
    detectable_sd_ratio,
    failed_run_rate,
    runs_for_sd_ratio,
    sd_ratio,
    summary,
)

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("sizes", [(5, 5), (4, 9), (6, 7, 8), (3, 3)])
def test_brown_forsythe_is_scipys_levene_at_the_median(sizes):
    groups = [RNG.normal(0, i + 1, size) for i, size in enumerate(sizes)]
    theirs = stats.levene(*groups, center="median")
    ours = brown_forsythe(groups)
    assert (ours.statistic, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_brown_forsythe_says_nothing_of_too_little():
    for groups in ([[1.0], [1.0, 2.0]], [[1, 2], [3, 9]], [[1, 1, 1], [2, 2, 2]], [[], [1, 2]]):
        assert math.isnan(brown_forsythe(groups).p)
    assert math.isnan(brown_forsythe([[1, 2, math.nan], [1, 2, 4]]).p)
    with pytest.raises(ValueError, match="1 groups"):
        brown_forsythe([[1, 2]])


@pytest.mark.parametrize(("runs", "ratio"), [(5, 2.53), (10, 1.78), (20, 1.47)])
def test_the_ratio_that_so_many_runs_can_show(runs, ratio):
    assert detectable_sd_ratio(runs, runs) == pytest.approx(ratio, abs=0.005)
    assert runs_for_sd_ratio(detectable_sd_ratio(runs, runs)) == runs
    assert runs_for_sd_ratio(ratio - 0.02) > runs


def test_the_true_ratio_is_found_as_often_as_promised():
    true = detectable_sd_ratio(8, 8, power=0.8)
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, true, (20_000, 8)), rng.normal(0, 1, (20_000, 8))
    found = one.std(axis=1, ddof=1) / two.std(axis=1, ddof=1) >= detectable_sd_ratio(8, 8)
    assert found.mean() == pytest.approx(0.8, abs=0.012)
    assert runs_for_sd_ratio(true, power=0.8) == 8


def test_edges_of_the_number_of_runs():
    assert runs_for_sd_ratio(1.0) is None
    assert runs_for_sd_ratio(math.nan) is None
    assert runs_for_sd_ratio(0.5) == runs_for_sd_ratio(2.0) == 8
    assert runs_for_sd_ratio(1e6) == 2
    assert runs_for_sd_ratio(0.0) == 2
    with pytest.raises(ValueError, match="1 and 5 runs"):
        detectable_sd_ratio(1, 5)


def test_sd_ratio_has_the_f_interval():
    a, b = RNG.normal(0, 2, 9), RNG.normal(0, 1, 7)
    found = sd_ratio(a, b)
    f = a.var(ddof=1) / b.var(ddof=1)
    assert found.value == pytest.approx(math.sqrt(f))
    assert stats.f.sf(f / found.low**2, 8, 6) == pytest.approx(0.025)
    assert stats.f.cdf(f / found.high**2, 8, 6) == pytest.approx(0.025)
    for one, two in ([1], [1, 2]), ([1, 1], [1, 2]), ([1, math.nan], [1, 2]):
        assert math.isnan(sd_ratio(one, two).value)


def test_cvar_by_hand():
    scores = [0.5, 0.9, 0.8, 0.6, 0.7]
    assert cvar(scores) == pytest.approx(0.5)
    assert cvar(scores, 0.4) == pytest.approx(0.55)
    assert cvar(scores, 0.3) == pytest.approx((0.5 + 0.5 * 0.6) / 1.5)
    assert cvar(scores, 0.01) == pytest.approx(0.5)
    assert cvar(scores, 1.0) == pytest.approx(0.7)
    assert cvar(scores, larger_is_better=False) == pytest.approx(0.9)
    assert cvar(np.arange(20.0)) == pytest.approx(1.5)
    assert math.isnan(cvar([0.1, math.nan]))
    for bad in ([], 0.2), ([1.0], 0.0):
        with pytest.raises(ValueError, match="scores, share"):
            cvar(*bad)


def test_failed_runs_are_no_better_than_a_constant_answer():
    rate = failed_run_rate([0.5, 0.51, 0.9, math.nan], 0.5, 0.01)
    assert rate.value == 0.75
    expected = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high))
    assert failed_run_rate([1.0, 3.0], 2.0, larger_is_better=False).value == 0.5


def test_a_summary():
    found = summary([0.9, 0.7, 0.8, 0.6])
    assert (found.runs, found.least, found.largest, found.worst) == (4, 0.6, 0.9, 0.6)
    assert found.mean == pytest.approx(0.75)
    assert found.sd == pytest.approx(np.std([0.9, 0.7, 0.8, 0.6], ddof=1))
    assert found.iqr == pytest.approx(stats.iqr([0.9, 0.7, 0.8, 0.6]))
    assert summary([1.0, 2.0], larger_is_better=False).worst == 2
    assert math.isnan(summary([0.5]).sd)
    assert math.isnan(summary([0.5, math.nan]).mean)
    with pytest.raises(ValueError, match="no scores"):
        summary([])
