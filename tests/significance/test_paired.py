from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sft_engine.significance.paired import (
    holm,
    least_pairs,
    least_runs,
    mcnemar,
    permutation_paired,
    permutation_unpaired,
)

RNG = np.random.default_rng(1)


@pytest.mark.parametrize(("b", "c"), [(0, 5), (3, 9), (9, 3), (7, 7), (1, 0), (40, 61)])
def test_mcnemar_is_the_binomial_test(b, c):
    found = mcnemar(b, c)
    assert found.exact == pytest.approx(stats.binomtest(b, b + c).pvalue)
    tail = sum(math.comb(b + c, i) for i in range(min(b, c))) / 2 ** (b + c)
    half = math.comb(b + c, min(b, c)) / 2 ** (b + c) / 2
    assert found.mid_p == pytest.approx(2 * (tail + half))
    assert found.mid_p <= found.exact


def test_mcnemar_without_a_difference_is_sure_of_nothing():
    assert (mcnemar(0, 0).exact, mcnemar(0, 0).mid_p) == (1, 1)
    assert mcnemar(4, 4).mid_p == pytest.approx(1)
    with pytest.raises(ValueError, match="below 0"):
        mcnemar(-1, 2)


def test_mcnemar_of_fagerlands_example():
    # Fagerland, Lydersen, Laake 2013, table 1 (airway hyper-responsiveness): 1 and 7.
    found = mcnemar(1, 7)
    assert found.exact == pytest.approx(0.0703, abs=5e-5)
    assert found.mid_p == pytest.approx(0.0391, abs=5e-5)


def mean_gap(x, y, axis=0):
    return x.mean(axis=axis) - y.mean(axis=axis)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_flipped_signs_are_scipys(n):
    a, b = RNG.normal(0.5, 1, n), RNG.normal(0, 1, n)
    ours = permutation_paired(a, b)
    assert ours.kind == "exact"
    assert ours.arrangements == 2**n
    if n > 1:
        theirs = stats.permutation_test((a, b), mean_gap, permutation_type="samples", axis=0)
        assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.difference == pytest.approx(a.mean() - b.mean())
    assert ours.least_p == pytest.approx(permutation_paired(np.arange(1, n + 1), np.zeros(n)).p)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (5, 5), (1, 4)])
def test_exchanged_values_are_scipys(n, m):
    a, b = RNG.normal(1, 1, n), RNG.normal(0, 1, m)
    ours = permutation_unpaired(a, b)
    # SciPy doubles the smaller tail; for groups of one size that is the same.
    assert ours.kind == "exact"
    if n == m:
        theirs = stats.permutation_test((a, b), mean_gap, permutation_type="independent")
        assert ours.p == pytest.approx(theirs.pvalue)
    apart = permutation_unpaired(np.arange(n) + 100.0, np.arange(m) * 1.0)
    assert ours.least_p == pytest.approx(apart.p)


def test_sampled_arrangements_are_near_the_exact_ones():
    a, b = RNG.normal(0.6, 1, 24), RNG.normal(0, 1, 24)
    paired = permutation_paired(a, b, samples=40_000)
    assert paired.kind == "sampled"
    # The sum of many flipped differences is nearly normal.
    gaps = a - b
    normal = 2 * stats.norm.sf(abs(gaps.sum()) / math.sqrt((gaps**2).sum()))
    assert paired.p == pytest.approx(normal, rel=0.25, abs=0.002)
    unpaired = permutation_unpaired(a, b, samples=40_000)
    assert unpaired.kind == "sampled"
    assert unpaired.p == pytest.approx(stats.ttest_ind(a, b).pvalue, rel=0.15, abs=0.002)
    assert permutation_paired(a, b, samples=500, seed=1) == permutation_paired(
        a, b, samples=500, seed=1
    )


def test_ties_count_as_being_as_far():
    # 0.1 + 0.2 is not 0.3: the same arrangement summed otherwise must count.
    a = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    assert permutation_paired(a, np.zeros(6)).p == pytest.approx(2 / 64)
    assert permutation_paired(a, a).p == 1
    assert permutation_unpaired(a, a).p == 1
    assert permutation_paired([0.5], [0.5]).p == 1


def test_nan_stays_nan_and_shapes_are_checked():
    assert math.isnan(permutation_paired([1, math.nan], [0, 0]).p)
    assert math.isnan(permutation_unpaired([1, math.nan], [0, 0]).p)
    with pytest.raises(ValueError, match="pairs of shapes"):
        permutation_paired([1, 2], [1])
    with pytest.raises(ValueError, match="groups of shapes"):
        permutation_unpaired([], [1])


def test_how_many_runs_a_permutation_test_needs():
    assert (least_pairs(0.05), least_pairs(0.01)) == (6, 8)
    assert least_runs(0.05) == 4
    assert permutation_paired(np.ones(6), np.zeros(6)).p < 0.05 < 2 / 2**5
    assert permutation_unpaired(np.ones(4), np.zeros(4)).p < 0.05


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    with_nan = holm([math.nan, 0.02, 0.03])
    assert math.isnan(with_nan[0])
    assert with_nan[1:] == pytest.approx([0.04, 0.04])
