"""Predictions in numbers, compared with loops and with scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from sft_engine.diagnosis.outputs import confident_class, label_noise, softmax, spread, summary


def some_predictions(number=60, classes=3):
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(number, classes)) * 2
    label = draws.integers(classes, size=number)
    loss = -np.log(softmax(logits)[np.arange(number), label])
    return {"logits": logits, "label": label, "loss": loss}


def test_counts_by_class_are_those_of_the_confusion_matrix():
    given = some_predictions()
    found = summary(given, "classification")
    table = confusion_matrix(given["label"], given["logits"].argmax(axis=1))
    assert found["labels"] == table.sum(axis=1).tolist()
    assert found["predicted"] == table.sum(axis=0).tolist()
    assert found["hits"] == table.diagonal().tolist()
    assert found["accuracy"] == pytest.approx(table.trace() / 60)
    assert found["loss"] == pytest.approx(given["loss"].mean())
    assert found["loss_error"] == pytest.approx(given["loss"].std(ddof=1) / math.sqrt(60))


def test_the_confident_class_is_that_of_the_paper():
    given = some_predictions()
    shares, label = softmax(given["logits"]), given["label"]
    thresholds = [
        np.mean([p[k] for p, y in zip(shares, label, strict=True) if y == k]) for k in range(3)
    ]
    for row, found in zip(shares, confident_class(shares, label), strict=True):
        eligible = [k for k in range(3) if row[k] >= thresholds[k]]
        assert found == (max(eligible, key=lambda k: row[k]) if eligible else -1)


def test_flipped_labels_of_sure_predictions_are_the_suspects():
    true = np.arange(200) % 2
    shares = np.where(true[:, None] == np.arange(2), 0.95, 0.05)
    label = true.copy()
    flipped = [3, 50, 51, 120]
    label[flipped] = 1 - label[flipped]
    found = label_noise(shares, label, np.arange(200) + 1000)
    assert found["suspects"] == 4
    assert sorted(found["rows"]) == [1000 + row for row in flipped]
    assert all(a != b for a, b in zip(found["labels"], found["predicted"], strict=True))
    assert found["sure_error"] + found["unsure_error"] == pytest.approx(4 / 100)


def test_the_spread_of_logits_leaves_out_what_changes_no_probability():
    draws = np.random.default_rng(1)
    same = np.tile([1.0, 2.0, 3.0], (50, 1))
    shifted = same + draws.normal(size=(50, 1))
    assert spread(shifted, centred=True) == pytest.approx(0, abs=1e-12)
    assert spread(shifted) == pytest.approx(shifted[:, 0].std())


def test_masked_labels_do_not_count():
    given = some_predictions()
    given["label"][:20] = -100
    found = summary(given, "classification")
    assert sum(found["labels"]) == 40
    assert found["loss"] == pytest.approx(given["loss"][20:].mean())


def test_nan_is_counted_and_nothing_else_is_made_of_it():
    given = some_predictions()
    given["logits"][3, 1] = np.nan
    found = summary(given, "classification")
    assert found["broken"] == 1
    assert "accuracy" not in found


def test_several_labels_and_numbers():
    flags = {"logits": np.array([[1.0, -1], [2, 3]]), "label": np.array([[1, 1], [0, 1]])}
    found = summary(flags, "multi-label")
    assert (found["predicted"], found["labels"], found["hits"]) == ([2, 1], [1, 2], [1, 1])
    numbers = {"logits": np.zeros((4, 1)), "label": np.arange(4.0)[:, None]}
    found = summary(numbers, "regression")
    assert (found["spread"], found["label_spread"]) == (0.0, pytest.approx(np.arange(4).std()))


def test_other_shapes_are_passed_over():
    assert summary({}, "classification") == {}
    assert summary({"logits": np.zeros((2, 3, 4))}, "classification") == {}
