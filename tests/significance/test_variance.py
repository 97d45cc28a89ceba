from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sft_engine.significance.variance import crossed_mean, variance_components

RNG = np.random.default_rng(6)


def study(rng, d=4, s=4, data=1.0, seed=1.0, rest=1.0):
    rows, columns = rng.normal(0, data, (d, 1)), rng.normal(0, seed, (1, s))
    return 5 + rows + columns + rng.normal(0, rest, (d, s))


def mean_squares(table):
    d, s = table.shape
    middle, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    of_data = s * ((rows - middle) ** 2).sum() / (d - 1)
    of_seed = d * ((columns - middle) ** 2).sum() / (s - 1)
    rest = ((table - rows[:, None] - columns + middle) ** 2).sum() / ((d - 1) * (s - 1))
    return of_data, of_seed, rest


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (2, 2)])
def test_a_full_table_is_the_analysis_of_variance(shape):
    table = study(RNG, *shape, data=3, seed=2)
    of_data, of_seed, rest = mean_squares(table)
    found = variance_components(table)
    assert found.data.value == pytest.approx(max(0, (of_data - rest) / shape[1]))
    assert found.seed.value == pytest.approx(max(0, (of_seed - rest) / shape[0]))
    assert found.rest.value == pytest.approx(rest)
    assert found.total == pytest.approx(sum(p.value for p in (found.data, found.seed, found.rest)))
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.runs, found.cells) == (table.size, table.size)


def test_an_example_by_hand():
    # Rows 1 5 9 apart, columns 0 and 2, and ±1 that cancels out: MS 32, 6, 3 - see the sums.
    table = np.array([[1, 3], [5, 7], [9, 11]]) + np.array([[1, -1], [0, 0], [-1, 1]])
    found = variance_components(table)
    assert found.rest.value == pytest.approx(4 / 2)
    assert found.data.value == pytest.approx((32 - 2) / 2)
    assert found.seed.value == pytest.approx((6 - 2) / 3)
    assert found.negative == ()


def test_negative_estimates_are_zero_and_named():
    table = np.array([[1.0, -1.0], [-1.0, 1.0]])
    found = variance_components(table)
    assert found.negative == ("data", "seed")
    assert (found.data.value, found.seed.value, found.rest.value) == (0, 0, 4)
    assert found.data.low == 0


def test_repeats_tell_more_of_the_rest():
    table = RNG.normal(size=(3, 4, 2))
    found = variance_components(table)
    means = table.mean(axis=2)
    of_data, of_seed, _ = mean_squares(means)
    fitted = means.mean(axis=1)[:, None] + means.mean(axis=0) - means.mean()
    rest = ((table - fitted[:, :, None]) ** 2).sum() / (24 - 6)
    assert found.rest.value == pytest.approx(rest)
    assert found.data.value == pytest.approx(max(0, (2 * of_data - rest) / 8))
    assert found.seed.value == pytest.approx(max(0, (2 * of_seed - rest) / 6))


def test_missing_cells_leave_the_estimates_unbiased():
    rng = np.random.default_rng(1)
    raw = []
    for _ in range(600):
        table = study(rng, 5, 4, data=2, seed=1.5)
        table[[0, 2, 4], [0, 3, 1]] = math.nan
        found = variance_components(table, draws=2)
        raw.append([found.data.value, found.seed.value, found.rest.value])
        assert (found.runs, found.cells) == (17, 20)
    means, errors = np.mean(raw, axis=0), np.std(raw, axis=0) / math.sqrt(600)
    # Cutting at zero lifts the means a little; three standard errors are more than that.
    assert np.all(np.abs(means - [4, 2.25, 1]) < 3.5 * errors)


def test_too_few_cells_are_refused():
    cross = np.full((3, 3), math.nan)
    cross[[0, 0, 1, 2], [0, 1, 2, 2]] = 1.0
    with pytest.raises(ValueError, match="4 of 9 cells are filled"):
        variance_components(cross)
    for shape in ((1, 4), (4, 1), (4,)):
        with pytest.raises(ValueError, match="two resamples and two seeds"):
            variance_components(np.ones(shape))
    with pytest.raises(ValueError, match="0 of 4 cells"):
        variance_components(np.full((2, 2), math.nan))


def test_a_constant_table_has_no_variance():
    found = variance_components(np.full((3, 3), 0.7))
    assert found.total == pytest.approx(0, abs=1e-30)
    assert all(math.isnan(share) or share >= 0 for share in found.shares.values())


def test_limits_of_the_rest_are_exact():
    found = variance_components(study(RNG))
    squares = found.rest.value * 9
    expected = squares / stats.chi2.ppf([0.975, 0.025], 9)
    assert (found.rest.low, found.rest.high) == pytest.approx(tuple(expected))


def test_limits_hold_what_they_promise():
    rng, hits, trials = np.random.default_rng(2), np.zeros(3), 300
    for _ in range(trials):
        found = variance_components(study(rng, data=1.5, seed=0.5), draws=1000)
        parts = zip((found.data, found.seed, found.rest), (2.25, 0.25, 1), strict=True)
        hits += [part.low <= truth <= part.high for part, truth in parts]
    assert np.all(hits / trials > 0.91)


def test_a_seed_draws_the_same_limits():
    table = study(RNG)
    assert variance_components(table, seed=3) == variance_components(table, seed=3)


def test_the_mean_of_a_crossed_table_by_hand():
    table = study(RNG, 4, 5, data=3, seed=2)
    of_data, of_seed, rest = mean_squares(table)
    found = crossed_mean(table)
    variance = of_data + of_seed - rest
    assert found.value == pytest.approx(table.mean())
    assert found.error == pytest.approx(math.sqrt(variance / 20))
    freedom = variance**2 / (of_data**2 / 3 + of_seed**2 / 4 + rest**2 / 12)
    assert found.freedom == pytest.approx(freedom)
    t = found.value / found.error
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))


def test_the_crossed_mean_keeps_its_level_where_cells_as_values_would_not():
    rng, ours, naive, trials = np.random.default_rng(3), 0, 0, 400
    for _ in range(trials):
        table = study(rng, data=1.0, seed=0.2, rest=0.3) - 5
        ours += crossed_mean(table).p < 0.05
        naive += stats.ttest_1samp(table.ravel(), 0).pvalue < 0.05
    assert ours / trials < 0.08
    assert naive / trials > 0.2


def test_edges_of_the_crossed_mean():
    assert math.isnan(crossed_mean(np.full((2, 2), 0.5)).p)
    assert crossed_mean(np.array([[1.0, -1.0], [-1.0, 1.0]]) + 2).error >= 0
    with pytest.raises(ValueError, match="a cell is missing"):
        crossed_mean([[1, math.nan], [1, 2]])
