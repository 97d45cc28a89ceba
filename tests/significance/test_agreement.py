from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import cohen_kappa_score

from sft_engine.significance.agreement import (
    churn,
    disagreement_matrix,
    disagreement_of_examples,
    fleiss_kappa,
    instability,
    jensen_shannon,
    mean_jensen_shannon,
    pairwise_disagreement,
)

RNG = np.random.default_rng(7)
ANSWERS = RNG.choice(["a", "b", "c"], size=(5, 40))


def test_pairwise_disagreement_pair_by_pair():
    pairs = list(itertools.combinations(ANSWERS, 2))
    assert pairwise_disagreement(ANSWERS) == pytest.approx(
        np.mean([(one != two).mean() for one, two in pairs])
    )
    each = [np.mean([one[i] != two[i] for one, two in pairs]) for i in range(40)]
    assert disagreement_of_examples(ANSWERS) == pytest.approx(np.array(each))
    matrix = disagreement_matrix(ANSWERS)
    assert matrix[1, 3] == matrix[3, 1] == (ANSWERS[1] != ANSWERS[3]).mean()
    assert matrix.sum() / 20 == pytest.approx(pairwise_disagreement(ANSWERS))


def test_equal_scores_may_hide_disagreement():
    truth = np.array([0, 0, 1, 1])
    runs = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    assert (runs == truth).mean(axis=1).std() == 0
    assert pairwise_disagreement(runs) == 1


def test_churn_and_its_bounds():
    truth = RNG.integers(0, 3, 200)
    for _ in range(20):
        one = np.where(RNG.random(200) < 0.8, truth, RNG.integers(0, 3, 200))
        two = np.where(RNG.random(200) < 0.7, truth, RNG.integers(0, 3, 200))
        found = churn(one, two, truth)
        gap = (one == truth).mean() - (two == truth).mean()
        assert found.least == pytest.approx(abs(gap))
        assert found.churn >= found.least
        assert found.negative_flips >= found.least_negative == max(0, gap)
        assert found.negative_flips - found.positive_flips == pytest.approx(gap)
        assert found.churn >= found.negative_flips + found.positive_flips


def test_churn_by_hand():
    found = churn([1, 1, 2, 3], [1, 2, 3, 3], [1, 1, 1, 3])
    assert (found.churn, found.negative_flips, found.positive_flips) == (0.5, 0.25, 0)
    with pytest.raises(ValueError, match="answers of shapes"):
        churn([1], [1, 2], [1])
    with pytest.raises(ValueError, match="answers of shapes"):
        churn([], [], [])


def test_fleiss_gives_the_figure_of_the_usual_example():
    # 14 raters, 10 subjects, 5 categories; κ = 0.210 (Fleiss' worked example in its common form).
    votes = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    raters = np.array([np.repeat(np.arange(5), row) for row in votes]).T
    assert fleiss_kappa(raters) == pytest.approx(0.210, abs=5e-4)


def test_kappa_of_two_with_equal_margins_is_cohens():
    one = RNG.integers(0, 3, 60)
    two = RNG.permutation(one)
    assert fleiss_kappa(np.array([one, two])) == pytest.approx(cohen_kappa_score(one, two))


def test_kappa_edges():
    assert fleiss_kappa(np.array([[0, 1, 2], [0, 1, 2]])) == 1
    assert math.isnan(fleiss_kappa(np.zeros((3, 4))))
    for shape in ((1, 4), (2, 0), (4,)):
        with pytest.raises(ValueError, match="needs two runs"):
            pairwise_disagreement(np.zeros(shape))


def test_jensen_shannon_is_scipys_squared_distance():
    one, two = RNG.dirichlet(np.ones(4), 6), RNG.dirichlet(np.ones(4), 6)
    expected = jensenshannon(one, two, axis=1) ** 2
    assert jensen_shannon(one, two) == pytest.approx(expected)
    assert jensen_shannon([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.log(2))
    assert jensen_shannon([1.0, 0.0], [1.0, 0.0]) == 0
    assert math.isnan(jensen_shannon([math.nan, 0.0], [0.5, 0.5]))


def test_mean_jensen_shannon_over_pairs():
    table = RNG.dirichlet(np.ones(3), size=(4, 5))
    pairs = itertools.combinations(table, 2)
    expected = np.mean([jensenshannon(a, b, axis=1) ** 2 for a, b in pairs])
    assert mean_jensen_shannon(table) == pytest.approx(expected)
    for shape in ((1, 4, 2), (2, 0, 2), (2, 4)):
        with pytest.raises(ValueError, match="probabilities of shape"):
            mean_jensen_shannon(np.zeros(shape))


def test_instability_by_hand():
    moved = instability([[0.2, 0.9], [0.4, 0.9], [0.9, 0.9]], reference=[0.5, 0.9])
    assert moved == pytest.approx(np.array([(0.3 + 0.1 + 0.4) / 3, 0]))
    both = np.array([[[0.2, 0.8]], [[0.4, 0.6]]])
    assert instability(both) == pytest.approx(instability(both[:, :, 0]))
    assert instability([[0.3]], reference=[0.5]) == pytest.approx(np.array([0.2]))
    with pytest.raises(ValueError, match="give a reference"):
        instability([[0.3]])
