"""Selective prediction, detection scores, confident learning, groups, divergence: by hand and by scikit-learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import fisher_exact
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors

from sft_engine.significance.intervals import wilson
from sft_probes import ood_scores
from sft_probes.groups import MISSING, groups_of, values_of
from sft_probes.label_noise import confident
from sft_probes.measures import probabilities_of
from sft_probes.outside import nonsense
from sft_probes.selective import aurc, excess_aurc, kept_at, risks
from sft_probes.sensitivity import noise_like, slopes, symmetric_kl


@pytest.fixture
def draws():
    return np.random.default_rng(1)


# --- selective prediction -------------------------------------------------------------------------


def test_risk_by_coverage_by_hand() -> None:
    confidence = np.array([0.9, 0.5, 0.7, 0.6])
    wrong = np.array([0.0, 1.0, 1.0, 0.0])
    assert risks(confidence, wrong) == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert aurc(confidence, wrong) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert aurc(-wrong, wrong) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert excess_aurc(confidence, wrong) == pytest.approx(1 / 8)


def test_equally_certain_examples_have_no_order(draws) -> None:
    wrong = (draws.random(50) < 0.3).astype(float)
    assert risks(np.ones(50), wrong) == pytest.approx([wrong.mean()] * 50)
    confidence = draws.integers(3, size=50) / 3
    order = draws.permutation(50)
    assert risks(confidence, wrong) == pytest.approx(risks(confidence[order], wrong[order]))
    means = [risks(confidence + 1e-9 * draws.random(50), wrong) for _ in range(800)]
    assert risks(confidence, wrong) == pytest.approx(np.mean(means, axis=0), abs=0.05)


def test_the_best_order_has_no_excess() -> None:
    wrong = np.array([0.0] * 6 + [1.0] * 2)
    assert excess_aurc(np.linspace(1, 0, 8), wrong) == 0
    assert excess_aurc(np.linspace(0, 1, 8), wrong) > 0.3


def test_examples_of_a_coverage() -> None:
    assert [kept_at(10, c) for c in (0.8, 0.79, 1.0, 0.01)] == [8, 8, 10, 1]
    assert kept_at(5, 0.6) == 3  # 0.6 * 5 is a little more than 3 in floats


# --- out of distribution --------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn(draws) -> None:
    inside, outside = draws.normal(1, 1, 300).round(1), draws.normal(0, 1, 170).round(1)
    found = ood_scores.figures(inside, outside)
    truth, scores = np.repeat([1, 0], [300, 170]), np.concatenate([inside, outside])
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found["aupr_in"] == pytest.approx(metrics.average_precision_score(truth, scores))
    assert found["aupr_out"] == pytest.approx(metrics.average_precision_score(1 - truth, -scores))
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert found["fpr_at_95_tpr"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_figures_at_the_ends() -> None:
    apart = ood_scores.figures(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert apart == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr_at_95_tpr": 0}
    same = ood_scores.figures(np.ones(4), np.ones(12))
    assert same == {"auroc": 0.5, "aupr_in": 0.25, "aupr_out": 0.75, "fpr_at_95_tpr": 1}


def test_scores_of_logits(draws) -> None:
    logits = draws.normal(0, 3, (40, 6))
    given = torch.from_numpy(logits)
    energy = 2.5 * torch.logsumexp(given / 2.5, dim=1)
    assert ood_scores.energy(logits, 2.5) == pytest.approx(energy.numpy())
    assert ood_scores.max_probability(logits) == pytest.approx(given.softmax(1).amax(1).numpy())
    assert ood_scores.max_logit(logits) == pytest.approx(given.amax(1).numpy())
    assert ood_scores.energy(logits + 7) == pytest.approx(ood_scores.energy(logits) + 7)


def test_mahalanobis_and_nearest(draws) -> None:
    training, labels = draws.standard_normal((90, 4)), np.repeat([0, 1, 3], 30)
    training[labels == 3] += 5
    features = draws.standard_normal((20, 4))
    means = [training[labels == k].mean(axis=0) for k in (0, 1, 3)]
    spread = sum(
        np.outer(x - means[[0, 1, 3].index(k)], x - means[[0, 1, 3].index(k)])
        for x, k in zip(training, labels, strict=True)
    )
    inverse = np.linalg.inv(spread / 90)
    expected = [-min((x - m) @ inverse @ (x - m) for m in means) for x in features]
    found = ood_scores.mahalanobis(features, training, labels)
    assert found == pytest.approx(expected, rel=1e-4)

    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (training, features)]
    distances, _ = NearestNeighbors(n_neighbors=5).fit(unit[0]).kneighbors(unit[1])
    assert ood_scores.nearest(features, training, 5) == pytest.approx(-distances[:, -1])
    assert ood_scores.nearest(features, training[:3], 5).shape == (20,)


def test_features_without_spread_are_no_trouble() -> None:
    training = np.array([[0.0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]])
    found = ood_scores.mahalanobis(np.array([[0.5, 1, 0], [0.5, 1, 3]]), training, np.zeros(4, int))
    assert np.isfinite(found).all()
    assert found[1] < found[0]
    assert np.isfinite(ood_scores.nearest(np.zeros((2, 3)), training, 1)).all()


def test_nonsense_keeps_size_and_letters(draws) -> None:
    row = {"text": "The quick brown fox", "features": [1.0, 2.0], "label": 1}
    nonsense(row, draws, np.array([[5.0, 6.0], [7.0, 8.0]]))
    assert sorted(row["text"]) == sorted("The quick brown fox")
    assert [len(word) for word in row["text"].split(" ")] == [3, 5, 5, 3]
    assert row["text"] != "The quick brown fox"
    assert row["features"][0] in (5, 7)
    assert row["features"][1] in (6, 8)
    assert row["label"] == 1


# --- label noise ----------------------------------------------------------------------------------


def test_confident_learning_by_hand(draws) -> None:
    """The definitions of the paper, example by example."""
    labels = draws.integers(3, size=200)
    shares = probabilities_of(
        2 * draws.standard_normal((200, 3)) + 2 * np.eye(3)[labels], several=False
    )
    found = confident(shares, labels)
    thresholds = [
        np.mean([p[j] for p, y in zip(shares, labels, strict=True) if y == j]) for j in range(3)
    ]
    joint = np.zeros((3, 3), dtype=int)
    for p, y, suggested in zip(shares, labels, found.suggested, strict=True):
        above = [j for j in range(3) if p[j] >= thresholds[j]]
        best = max(above, key=lambda j: p[j]) if above else -1
        assert suggested == best
        if above:
            joint[y, best] += 1
    assert found.thresholds == pytest.approx(thresholds)
    assert (found.joint == joint).all()
    calibrated = joint / joint.sum(axis=1, keepdims=True) * np.bincount(labels)[:, None]
    assert found.share == pytest.approx(1 - np.trace(calibrated) / 200)


def test_flipped_labels_are_found_and_no_others() -> None:
    truth = np.tile([0, 1, 2], 40)
    shares = np.full((120, 3), 0.05) + 0.85 * np.eye(3)[truth]
    assert (confident(shares, truth).suggested == truth).all()
    assert confident(shares, truth).share == 0
    given = truth.copy()
    given[[0, 31, 62]] = (truth[[0, 31, 62]] + 1) % 3
    found = confident(shares, given)
    assert np.flatnonzero(found.suggested != given).tolist() == [0, 31, 62]
    assert found.share == pytest.approx(3 / 120)
    assert found.margin[[0, 31, 62]] == pytest.approx(-0.85)
    assert (np.delete(found.margin, [0, 31, 62]) > 0).all()


def test_a_class_that_no_example_has_suggests_nothing() -> None:
    shares = np.array([[0.1, 0.2, 0.7], [0.3, 0.1, 0.6]])
    found = confident(shares, np.array([0, 1]))
    assert 2 not in found.suggested
    assert np.isfinite(found.margin).all()


# --- groups ---------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    names = ["a"] * 30 + ["b"] * 40 + ["c"] * 5
    right = np.array([True] * 15 + [False] * 15 + [True] * 36 + [False] * 4 + [False] * 5)
    worst, best, small = groups_of(names, right, smallest=10)
    assert [(g.name, g.examples, g.right) for g in (worst, best, small)] == [
        ("a", 30, 15),
        ("b", 40, 36),
        ("c", 5, 0),
    ]
    interval = wilson(15, 30, 1 - 0.05 / 2)
    assert (worst.low, worst.high) == (interval.low, interval.high)
    raw = [
        fisher_exact([[15, 15], [36, 9]]).pvalue,
        fisher_exact([[36, 4], [15, 20]]).pvalue,
    ]
    adjusted = [min(1, 2 * p) if p == min(raw) else max(p, 2 * min(raw)) for p in raw]
    assert [worst.p, best.p] == pytest.approx(adjusted)
    assert small.p is None
    assert groups_of(["a"] * 4, np.ones(4, bool), 1)[0].p == 1


def test_by_chance_alone_hardly_any_group_is_judged_worse(draws) -> None:
    names = [str(i % 10) for i in range(500)]
    alarms = [
        min(g.p for g in groups_of(names, draws.random(500) < 0.8, 10)) < 0.05 for _ in range(40)
    ]
    assert sum(alarms) <= 6  # 2 are expected at most; more than 6 in 0.3 % of cases


def test_groups_of_columns() -> None:
    assert values_of(pa.array(["x", None, "y"]), 4) == ["x", MISSING, "y"]
    assert values_of(pa.array([True, False]), 4) == ["True", "False"]
    assert values_of(pa.array([1, 2, 1]), 4) == ["1", "2", "1"]
    cut = values_of(pa.array([*map(float, range(100)), None, float("nan")]), 4)
    assert cut[100:] == [MISSING, MISSING]
    assert [cut[:100].count(name) for name in dict.fromkeys(cut[:100])] == [25, 25, 25, 25]


# --- sensitivity ----------------------------------------------------------------------------------


def test_divergence_is_that_of_torch_and_symmetric(draws) -> None:
    one, other = draws.standard_normal((2, 30, 4))
    p, q = (torch.from_numpy(each).log_softmax(1) for each in (one, other))
    kl = torch.nn.functional.kl_div
    both = kl(p, q, log_target=True, reduction="none") + kl(q, p, log_target=True, reduction="none")
    assert symmetric_kl(one, other) == pytest.approx(both.sum(1).numpy())
    assert symmetric_kl(one, other) == pytest.approx(symmetric_kl(other, one))
    assert (symmetric_kl(one, one) == 0).all()


def test_divergence_of_several_labels(draws) -> None:
    one, other = draws.standard_normal((2, 30, 4))
    bernoulli = torch.distributions.Bernoulli
    p, q = (bernoulli(logits=torch.from_numpy(each)) for each in (one, other))
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    assert symmetric_kl(one, other, several=True) == pytest.approx(both.mean(1).numpy())


def test_slopes_of_a_linear_function_stay_below_its_norm(draws) -> None:
    weight, x = draws.standard_normal((3, 6)), draws.standard_normal((50, 6))
    z = 0.1 * draws.standard_normal((50, 6))
    found = slopes(x @ weight.T, (x + z) @ weight.T, np.linalg.norm(z, axis=1))
    bound = np.linalg.svd(weight, compute_uv=False)
    assert 0 < found.max() <= bound[0] + 1e-12
    top = np.linalg.svd(weight)[2][:1]  # along the first singular vector it is reached
    assert slopes(x[:1] @ weight.T, (x[:1] + top) @ weight.T, np.ones(1)) == pytest.approx(bound[0])
    assert slopes(x, x, np.zeros(50)).max() == 0


def test_noise_depends_on_the_example_alone() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 5, 4000, dtype=torch.float64)
    kept = torch.ones(3, 5, 1)
    kept[0, 3:] = 0
    noise = noise_like(values, 0.3, 1, [7, 8, 9], kept, 1)
    assert (noise[0, 3:] == 0).all()
    ratio = noise.square().mean(-1).sqrt() / values.square().mean(-1).sqrt()
    assert ratio[1:].flatten().tolist() == pytest.approx([0.3] * 10, rel=0.06)
    alone = noise_like(values[:1, :3], 0.3, 1, [7], kept[:1, :3], 1)
    assert torch.equal(alone[0], noise[0, :3])
    assert not noise_like(values, 0.0, 1, [7, 8, 9], kept, 1).any()
