from __future__ import annotations

import math

import pytest
from scipy import stats

from sft_engine.significance.intervals import difference_of_proportions, wilson, z_of


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (1, 1), (3, 10), (872, 900), (20, 20)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(successes, total, level):
    ours = wilson(successes, total, level)
    theirs = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == successes / total


def test_without_trials_anything_is_possible():
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, 1)
    assert not nothing.excludes_zero


def test_wilson_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="level 1"):
        z_of(1.0)


def test_newcombe_gives_the_figures_of_his_article():
    # Newcombe 1998, table II, contrasts (a), (b), (e), (g); method 10.
    for (a, m, b, n), low, high in [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((10, 10, 0, 20), 0.6791, 1.0000),
    ]:
        found = difference_of_proportions(a, m, b, n)
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
        assert found.value == pytest.approx(a / m - b / n)
