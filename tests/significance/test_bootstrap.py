from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sft_engine.significance import bootstrap as module
from sft_engine.significance.bootstrap import bootstrap

RNG = np.random.default_rng(3)
SKEWED = RNG.exponential(size=40)


def ratio(means):
    return means[:, 1] / means[:, 0]


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_limits_of_a_skewed_mean_are_scipys(method, level):
    ours = bootstrap(SKEWED, resamples=20_000, method=method).interval(level)
    theirs = stats.bootstrap(
        (SKEWED,),
        np.mean,
        n_resamples=20_000,
        method={"bca": "BCa"}.get(method, method),
        confidence_level=level,
        rng=np.random.default_rng(0),
    ).confidence_interval
    # Both are drawn: their limits differ by a few hundredths of the standard error.
    room = 0.06 * SKEWED.std() / math.sqrt(len(SKEWED))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=room)


def test_limits_of_a_function_of_means_are_scipys():
    rows = np.column_stack([SKEWED + 1, SKEWED**2])
    ours = bootstrap(rows, ratio, resamples=20_000)
    theirs = stats.bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda x, y, axis: y.mean(axis=axis) / x.mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    limits = ours.interval(0.95)
    room = 0.08 * theirs.standard_error
    expected = theirs.confidence_interval
    assert (limits.low, limits.high) == pytest.approx((expected.low, expected.high), abs=room)
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.05)
    assert ours.value == pytest.approx((SKEWED**2).mean() / (SKEWED + 1).mean())


def test_acceleration_is_the_closed_form_of_a_mean():
    gaps = SKEWED - SKEWED.mean()
    expected = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)
    assert bootstrap(SKEWED, resamples=10).acceleration == pytest.approx(expected)


def test_the_error_of_a_share_is_the_binomial_one():
    rows = np.repeat([1.0, 0.0], [300, 700])
    assert bootstrap(rows).error == pytest.approx(math.sqrt(0.3 * 0.7 / 1000), rel=0.03)


MANY_KINDS = RNG.normal(2, 1, (40, 3))
FEW_KINDS = np.repeat([[0.0, 1.0], [1.0, 3.0]], [30, 70], axis=0)


@pytest.mark.parametrize("rows", [MANY_KINDS[:, :1], MANY_KINDS, FEW_KINDS], ids=["1", "3", "few"])
def test_a_seed_draws_the_same_in_any_block(rows, monkeypatch):
    def sum_of_columns(means):
        return means.sum(axis=1)

    whole = bootstrap(rows, sum_of_columns, resamples=200, seed=5).samples
    monkeypatch.setattr(module, "BLOCK", 1000)
    parts = bootstrap(rows, sum_of_columns, resamples=200, seed=5).samples
    assert np.allclose(whole, parts, rtol=0, atol=1e-14)
    assert not np.allclose(whole, bootstrap(rows, sum_of_columns, resamples=200, seed=6).samples)


@pytest.mark.parametrize("rows", [MANY_KINDS[:, :1], MANY_KINDS, FEW_KINDS], ids=["1", "3", "few"])
def test_the_error_of_a_sum_of_means_is_the_closed_form(rows):
    found = bootstrap(rows, lambda means: means.sum(axis=1))
    assert found.error == pytest.approx(rows.sum(axis=1).std() / math.sqrt(len(rows)), rel=0.03)


def test_p_agrees_with_the_limits():
    shifted = bootstrap(SKEWED - SKEWED.mean() + 0.25, method="percentile")
    at_p = shifted.interval(1 - shifted.p)
    assert min(abs(at_p.low), abs(at_p.high)) < 0.01
    assert bootstrap(SKEWED).p == pytest.approx(2 / 10_001)
    assert bootstrap(np.zeros(9)).p == 1


def test_a_constant_has_no_spread():
    limits = bootstrap(np.full(5, 0.25)).interval()
    assert (limits.low, limits.value, limits.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("rows", [[], [0.5], [0.5, math.nan], [0.5, math.inf]])
def test_what_allows_no_limits_gets_none(rows):
    found = bootstrap(np.array(rows))
    limits = found.interval()
    assert math.isnan(limits.low)
    assert math.isnan(limits.high)
    assert math.isnan(found.p)
    assert math.isnan(found.error)
    assert not limits.excludes_zero


def test_a_statistic_that_is_often_undefined_has_no_limits():
    rows = np.array([0.0, 0.0, 1.0])
    assert math.isnan(bootstrap(rows, lambda means: 1 / means[:, 0]).interval().low)


def test_memory_is_bounded():
    import tracemalloc

    rows = RNG.normal(size=20_000)
    tracemalloc.start()
    bootstrap(rows, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # 300 whole resamples at once, as integers and floats, would be 96 MB
