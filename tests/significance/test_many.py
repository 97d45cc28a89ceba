from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sft_engine.significance.many import friedman, nemenyi

RNG = np.random.default_rng(2)
SCORES = RNG.normal(size=(8, 4)) + np.arange(4) * 0.7


@pytest.mark.parametrize("scores", [SCORES, np.round(SCORES), RNG.integers(0, 2, (30, 3))])
def test_friedman_is_scipys_with_ties_too(scores):
    ours, theirs = friedman(scores), stats.friedmanchisquare(*scores.T)
    assert (ours.statistic, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert sum(ours.mean_ranks) == pytest.approx(scores.shape[1] * (scores.shape[1] + 1) / 2)


def test_on_right_and_wrong_it_is_cochrans_q():
    right = RNG.integers(0, 2, (40, 3))
    columns, rows, k = right.sum(axis=0), right.sum(axis=1), 3
    q = (k - 1) * (k * (columns**2).sum() - columns.sum() ** 2) / (k * rows.sum() - (rows**2).sum())
    assert friedman(right).statistic == pytest.approx(q)


def test_demsars_example():
    # Demšar 2006, table 6: AUC of four variants of C4.5 on 14 data sets; text of section 3.2.2.
    table = np.array(
        """.763 .768 .771 .798 .599 .591 .590 .569 .954 .971 .968 .967 .628 .661 .654 .657
        .882 .888 .886 .898 .936 .931 .916 .931 .661 .668 .609 .685 .583 .583 .563 .625
        .775 .838 .866 .875 1.000 1.000 1.000 1.000 .940 .962 .965 .962 .619 .666 .614 .669
        .972 .981 .9751 .975 .957 .978 .946 .970""".split(),
        dtype=float,
    ).reshape(14, 4)
    found = friedman(table)
    assert found.mean_ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=6e-4)
    # He computes without the correction for ties: 9.28.
    plain = 12 * 14 / 20 * sum((rank - 2.5) ** 2 for rank in found.mean_ranks)
    assert plain == pytest.approx(9.28, abs=0.01)
    assert found.statistic == pytest.approx(stats.friedmanchisquare(*table.T).statistic)
    assert nemenyi(table, alpha=0.10).critical_difference == pytest.approx(1.12, abs=0.01)
    assert nemenyi(table).critical_difference == pytest.approx(2.569 * math.sqrt(20 / 84), abs=1e-3)


def test_nemenyi_by_the_studentised_range():
    found = nemenyi(SCORES)
    ranks = np.array(friedman(SCORES).mean_ranks)
    gap = abs(ranks[0] - ranks[3])
    unit = math.sqrt(4 * 5 / (6 * 8))
    expected = stats.studentized_range.sf(gap / unit * math.sqrt(2), 4, np.inf)
    assert found.p[0][3] == found.p[3][0] == pytest.approx(expected)
    assert found.p[1][1] == 1
    assert (found.p[0][3] < 0.05) == (gap > found.critical_difference)


def test_the_better_has_the_lower_rank():
    assert friedman(SCORES).mean_ranks[3] < friedman(SCORES).mean_ranks[0]
    least = friedman(SCORES, larger_is_better=False)
    assert least.mean_ranks[3] > least.mean_ranks[0]
    assert least.p == pytest.approx(friedman(SCORES).p)


def test_edges():
    tied = friedman(np.ones((5, 3)))
    assert (tied.statistic, tied.p, tied.mean_ranks) == (0, 1, (2, 2, 2))
    assert nemenyi(np.ones((5, 3))).p[0][1] == pytest.approx(1)
    perfect = friedman(np.tile([1.0, 2.0, 3.0], (4, 1)))
    assert (perfect.statistic, perfect.p_f) == (8, 0)
    assert math.isnan(friedman([[1, 2, math.nan], [1, 2, 3]]).p)
    for scores in (np.ones((5, 2)), np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="needs 2 blocks and 3 methods"):
            friedman(scores)


def test_iman_davenport_by_hand():
    found = friedman(SCORES)
    f = 7 * found.statistic / (8 * 3 - found.statistic)
    assert found.p_f == pytest.approx(stats.f.sf(f, 3, 21))
