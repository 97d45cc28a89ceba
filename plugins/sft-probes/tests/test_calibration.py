"""Calibration against torchmetrics, closed forms and a loop by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from sft_engine.reporting.reliability import calibration as of_the_engine
from sft_probes.calibration_figures import (
    adaptive_ece,
    bins_of,
    calibration,
    classwise_ece,
    fit_temperature,
    negative_log_likelihood,
)
from sft_probes.measures import probabilities_of


@pytest.fixture
def draws():
    return np.random.default_rng(0)


@pytest.fixture
def many(draws):
    """Logits of 5 classes and labels that they tell a little about."""
    labels = draws.integers(5, size=700)
    logits = 2 * draws.standard_normal((700, 5)) + 1.5 * np.eye(5)[labels]
    return logits, np.eye(5)[labels], labels


@pytest.fixture
def several(draws):
    logits = 2 * draws.standard_normal((400, 3))
    truth = (draws.random((400, 3)) < probabilities_of(logits / 2, several=True)).astype(float)
    return logits, truth


def test_ece_and_mce_are_those_of_torchmetrics(many) -> None:
    logits, truth, labels = many
    found = calibration(logits, truth)
    shares = torch.from_numpy(probabilities_of(logits, several=False))
    theirs = [
        float(
            multiclass_calibration_error(
                shares, torch.from_numpy(labels), num_classes=5, n_bins=15, norm=norm
            )
        )
        for norm in ("l1", "max")
    ]
    assert [found.ece, found.mce] == pytest.approx(theirs, abs=1e-6)
    assert found.nll == pytest.approx(
        float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(labels)))
    )
    assert found.brier == pytest.approx(((shares.numpy() - truth) ** 2).sum(axis=1).mean())


def test_several_labels_are_cases_of_their_own(several) -> None:
    logits, truth = several
    found = calibration(logits, truth, several=True)
    cases = torch.from_numpy(probabilities_of(logits, several=True)).reshape(-1)
    theirs = binary_calibration_error(cases, torch.from_numpy(truth).reshape(-1).int(), n_bins=15)
    assert found.ece == pytest.approx(float(theirs), abs=1e-6)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert found.nll == pytest.approx(float(loss(torch.tensor(logits), torch.tensor(truth))))
    assert found.brier == pytest.approx(np.mean((cases.numpy() - truth.ravel()) ** 2))


def test_the_engine_finds_the_same_bins(many) -> None:
    logits, truth, labels = many
    shares = probabilities_of(logits, several=False)
    records = [
        {
            "prediction": str(row.argmax()),
            "label": str(label),
            "probabilities": {str(k): p for k, p in enumerate(row.tolist())},
        }
        for row, label in zip(shares, labels, strict=True)
    ]
    theirs, found = of_the_engine(records), calibration(logits, truth)
    assert found.ece == pytest.approx(theirs["ece"])
    for one, other in zip(found.bins, theirs["bins"], strict=True):
        assert one == pytest.approx(other)


def test_classwise_and_adaptive_by_hand(many) -> None:
    logits, truth, labels = many
    shares = probabilities_of(logits, several=False)
    per_class = []
    for k in range(5):
        error = 0.0
        for low in range(15):
            inside = [i for i in range(700) if low / 15 <= shares[i, k] < (low + 1) / 15]
            if inside:
                gap = np.mean(labels[inside] == k) - shares[inside, k].mean()
                error += len(inside) / 700 * abs(gap)
        per_class.append(error)
    assert classwise_ece(shares, truth) == pytest.approx(np.mean(per_class))

    ranked = sorted((max(row), row.argmax() == y) for row, y in zip(shares, labels, strict=True))
    parts = np.array_split(np.array(ranked, dtype=float), 15)
    expected = sum(len(part) / 700 * abs(np.diff(part.mean(axis=0))[0]) for part in parts)
    right = (shares.argmax(axis=1) == labels).astype(float)
    assert adaptive_ece(shares.max(axis=1), right) == pytest.approx(expected)


def test_always_sure_and_right_in_a_share_of_cases() -> None:
    """Methods A2.15: constant confidence 1 and accuracy a give 1 - a."""
    logits = np.tile([800.0, 0.0], (10, 1))
    found = calibration(logits, np.eye(2)[[0] * 7 + [1] * 3])
    assert (found.ece, found.mce, found.adaptive_ece) == pytest.approx((0.3, 0.3, 0.3), abs=1e-12)
    assert found.brier == pytest.approx(2 * 0.3)
    assert found.bins == [
        {"low": 14 / 15, "high": 1.0, "examples": 10, "confidence": 1.0, "accuracy": 0.7}
    ]


def test_a_calibrated_sampler_has_no_error_in_the_limit(draws) -> None:
    errors = []
    for count in (200, 20_000):
        shares = draws.uniform(0.5, 1, count)
        right = (draws.random(count) < shares).astype(float)
        bins = bins_of(shares, right)
        gaps = [b["examples"] / count * abs(b["accuracy"] - b["confidence"]) for b in bins]
        errors.append(sum(gaps))
    assert errors[1] < 0.015 < errors[0]


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.7])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_logits_that_were_scaled_are_scaled_back(draws, scale, kind) -> None:
    """Methods A2.14: truth is the probability itself, so that T = 1 is the optimum of unscaled logits."""
    logits = draws.standard_normal((300, 4))
    shares = probabilities_of(logits, several=kind == "several")
    found = fit_temperature(scale * logits, shares, several=kind == "several")
    assert found == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("kind", ["one", "several"])
def test_no_other_temperature_is_better(many, several, kind) -> None:
    logits, truth = several if kind == "several" else many[:2]
    flag = kind == "several"
    best = fit_temperature(logits, truth, several=flag)

    def nll(t):
        return negative_log_likelihood(logits / t, truth, several=flag)

    assert nll(best) <= nll(1.0)
    assert all(nll(best) <= nll(t) + 1e-9 for t in np.exp(np.linspace(-3, 3, 121)))
    assert ((logits / best).argmax(axis=1) == logits.argmax(axis=1)).all()


def test_a_separated_split_stays_within_bounds() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 2.0]])
    found = fit_temperature(logits, np.eye(2))
    assert math.isfinite(found)
    assert math.exp(-6) <= found <= 1


def test_extreme_logits_are_no_trouble() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert calibration(logits, np.eye(2)).ece == 0
    assert calibration(logits, np.eye(2), several=True).nll == 0
    assert negative_log_likelihood(logits, np.eye(2)[::-1]) == pytest.approx(2e4)
