from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as oracle

from sft_engine import RecipeError
from sft_engine.metrics import (
    direction_of,
    multi_label,
    names_for,
    parse,
    problems,
    regression,
    single_label,
)

CLASSES = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (200,), generator=generator)
    logits = torch.randn(200, 3, generator=generator)
    logits[torch.arange(200), label] += 1
    return logits, label, torch.nn.functional.cross_entropy(logits, label, reduction="none")


def compute(data, *names, classes=CLASSES):
    return single_label(*data, classes, names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", oracle.accuracy_score),
        ("balanced-accuracy", oracle.balanced_accuracy_score),
        ("f1", lambda y, p: oracle.f1_score(y, p, average="macro")),
        ("f1-macro", lambda y, p: oracle.f1_score(y, p, average="macro")),
        ("f1-micro", lambda y, p: oracle.f1_score(y, p, average="micro")),
        ("f1-weighted", lambda y, p: oracle.f1_score(y, p, average="weighted")),
        ("f1_score", lambda y, p: oracle.f1_score(y, p, average="macro")),
        ("precision", lambda y, p: oracle.precision_score(y, p, average="macro")),
        ("recall", lambda y, p: oracle.recall_score(y, p, average="macro")),
        ("recall/fair", lambda y, p: oracle.recall_score(y, p, average=None)[1]),
        ("f1/good", lambda y, p: oracle.f1_score(y, p, average=None)[2]),
        ("mcc", oracle.matthews_corrcoef),
        ("kappa", oracle.cohen_kappa_score),
        ("quadratic-kappa", lambda y, p: oracle.cohen_kappa_score(y, p, weights="quadratic")),
        ("jaccard-index", lambda y, p: oracle.jaccard_score(y, p, average="macro")),
        ("specificity/bad", lambda y, p: oracle.recall_score(y != 0, p != 0)),
    ],
)
def test_class_metrics_are_those_of_scikit_learn(data, name, expected):
    label, prediction = data[1].numpy(), data[0].argmax(1).numpy()
    assert compute(data, name)[name] == pytest.approx(expected(label, prediction), rel=1e-6)


def test_probability_metrics_are_those_of_scikit_learn(data):
    label, shares = data[1].numpy(), data[0].double().softmax(1).numpy()
    values = compute(data, "auroc", "auroc-weighted", "average-precision/good", "nll", "loss")
    rest = {"multi_class": "ovr"}
    assert values["auroc"] == pytest.approx(oracle.roc_auc_score(label, shares, **rest))
    weighted = oracle.roc_auc_score(label, shares, average="weighted", **rest)
    assert values["auroc-weighted"] == pytest.approx(weighted)
    precision = oracle.average_precision_score(label == 2, shares[:, 2])
    assert values["average-precision/good"] == pytest.approx(precision)
    assert values["nll"] == values["loss"] == pytest.approx(oracle.log_loss(label, shares))


def test_usual_metrics_of_classes(data):
    values = single_label(*data, CLASSES, ())
    assert list(values)[:4] == ["accuracy", "f1", "balanced-accuracy", "nll"]
    truth, guess = data[1].numpy(), data[0].argmax(1).numpy()
    by_class = oracle.precision_recall_fscore_support(truth, guess)
    for metric, each in zip(("precision", "recall", "f1", "support"), by_class, strict=True):
        found = [values[f"{metric}/{name}"] for name in CLASSES]
        assert found == pytest.approx(each.tolist(), rel=1e-6)
    expected = oracle.confusion_matrix(data[1].numpy(), data[0].argmax(1).numpy())
    assert values["confusion_matrix"] == expected.tolist()


def test_with_very_many_classes_values_by_class_must_be_asked_for():
    logits = torch.eye(60)
    label = torch.arange(60)
    classes = tuple(map(str, range(60)))
    assert set(single_label(logits, label, torch.zeros(60), classes, ())) == {
        "accuracy", "f1", "balanced-accuracy", "nll",
    }  # fmt: skip
    assert len(single_label(logits, label, torch.zeros(60), classes, ["f1/*"])) == 60


def test_masked_examples_are_not_counted(data):
    logits, label, loss = data
    masked = torch.where(torch.arange(200) < 50, -100, label)
    rest = (logits[50:], label[50:], loss[50:])
    names = ("accuracy", "f1", "nll")
    assert compute((logits, masked, loss), *names) == pytest.approx(compute(rest, *names))


def test_one_nan_makes_every_metric_nan(data):
    logits, label, _ = data
    broken = logits.clone()
    broken[3, 1] = math.nan
    loss = torch.nn.functional.cross_entropy(broken, label, reduction="none")
    values = single_label(broken, label, loss, CLASSES, ())
    matrix = values.pop("confusion_matrix")
    assert np.isnan(matrix).all()
    assert all(math.isnan(value) for value in values.values())
    numbers = torch.tensor([[1.0], [math.nan]])
    assert all(
        math.isnan(v)
        for v in regression(numbers, torch.ones(2, 1), numbers[:, 0], ("y",), ()).values()
    )


def test_nothing_to_count_is_nan():
    empty = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    assert all(math.isnan(value) for value in compute(empty, "accuracy", "nll", "f1/bad").values())


def test_areas_of_a_class_that_does_not_occur_are_nan_and_not_zero():
    logits = torch.randn(8, 3)
    label = torch.tensor([0, 1] * 4)
    values = compute(
        (logits, label, torch.zeros(8)), "auroc/*", "auroc", "auroc-weighted", "recall/good"
    )
    assert math.isnan(values["auroc/good"])
    assert math.isnan(values["auroc"])
    assert not math.isnan(values["auroc/bad"])
    assert values["recall/good"] == 0
    only = compute((logits, torch.zeros(8, dtype=torch.long), torch.zeros(8)), "auroc/bad")
    assert math.isnan(only["auroc/bad"])


def test_balanced_accuracy_counts_the_classes_that_occur():
    logits = torch.eye(3)[[0, 1, 2, 0]]
    label = torch.tensor([0, 1, 1, 0])
    value = compute((logits, label, torch.zeros(4)), "balanced-accuracy")["balanced-accuracy"]
    assert value == pytest.approx((1 + 0.5) / 2)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        theirs = oracle.balanced_accuracy_score(label.numpy(), [0, 1, 2, 0])
    assert value == pytest.approx(theirs)


def test_a_class_that_is_neither_there_nor_predicted_does_not_count_in_a_macro_mean():
    logits = torch.eye(3)[[0, 1, 1, 0]]
    label = torch.tensor([0, 1, 0, 0])
    values = compute(
        (logits, label, torch.zeros(4)), "f1", "recall", "f1/good", "support/*", "support"
    )
    truth, guess = label.numpy(), logits.argmax(1).numpy()
    assert values["f1"] == pytest.approx(oracle.f1_score(truth, guess, average="macro"))
    assert values["recall"] == pytest.approx(oracle.recall_score(truth, guess, average="macro"))
    assert (values["f1/good"], values["support/good"], values["support"]) == (0, 0, 4)


def test_multi_label_metrics_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    label = (torch.rand(100, 3, generator=generator) > 0.6).float()
    logits = torch.randn(100, 3, generator=generator) + label
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    values = multi_label(logits, label, loss.mean(1), CLASSES, ())
    truth, guess = label.numpy().astype(int), (logits > 0).numpy().astype(int)
    assert values["f1"] == pytest.approx(oracle.f1_score(truth, guess, average="macro"))
    assert values["f1-micro"] == pytest.approx(oracle.f1_score(truth, guess, average="micro"))
    by_label = oracle.precision_recall_fscore_support(truth, guess)
    for metric, each in zip(("precision", "recall", "f1", "support"), by_label, strict=True):
        found = [values[f"{metric}/{name}"] for name in CLASSES]
        assert found == pytest.approx(each.tolist(), rel=1e-6)
    balanced = [oracle.balanced_accuracy_score(truth[:, k], guess[:, k]) for k in range(3)]
    assert values["balanced-accuracy"] == pytest.approx(sum(balanced) / 3)
    assert values["accuracy"] == pytest.approx((truth == guess).mean())
    assert values["exact-match"] == pytest.approx(oracle.accuracy_score(truth, guess))
    assert values["recall/good"] == pytest.approx(oracle.recall_score(truth[:, 2], guess[:, 2]))
    expected = oracle.multilabel_confusion_matrix(truth, guess)
    assert values["confusion_matrix"] == expected.tolist()
    area = multi_label(logits, label, loss.mean(1), CLASSES, ["auroc", "auroc-micro"])
    assert area["auroc"] == pytest.approx(oracle.roc_auc_score(truth, logits.numpy()))
    micro = oracle.roc_auc_score(truth, logits.numpy(), average="micro")
    assert area["auroc-micro"] == pytest.approx(micro)


def test_balanced_accuracy_of_labels_counts_those_that_occur_and_are_absent():
    label = torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 1, 0]])
    logits = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, -1]])
    data = (logits, label, torch.zeros(3), CLASSES)
    assert multi_label(*data, ["balanced-accuracy"])["balanced-accuracy"] == (0.5 + 0) / 2
    always = torch.ones(3, 3)
    nothing = multi_label(logits, always, torch.zeros(3), CLASSES, ["balanced-accuracy"])
    assert math.isnan(nothing["balanced-accuracy"])


def test_regression_metrics_are_those_of_scikit_learn_and_scipy():
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(50, 1, generator=generator)
    outputs = target + 0.5 * torch.randn(50, 1, generator=generator)
    values = regression(outputs, target, torch.ones(50), ("y",), ())
    y, p = target[:, 0].numpy(), outputs[:, 0].numpy()
    expected = {
        "mse": oracle.mean_squared_error(y, p),
        "rmse": oracle.root_mean_squared_error(y, p),
        "mae": oracle.mean_absolute_error(y, p),
        "r2": oracle.r2_score(y, p),
        "pearson": stats.pearsonr(y, p).statistic,
        "spearman": stats.spearmanr(y, p).statistic,
    }
    assert values == pytest.approx(expected, rel=1e-5)


def test_several_targets_are_averaged_and_each_can_be_seen():
    target = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    outputs = target + torch.tensor([1.0, 3.0])
    values = regression(outputs, target, torch.ones(3), ("a", "b"), ["rmse", "rmse/*", "mse"])
    assert values == pytest.approx({"rmse": 2.0, "rmse/a": 1.0, "rmse/b": 3.0, "mse": 5.0})


def test_regression_over_one_example_or_a_constant():
    one = regression(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1), ("y",), ())
    assert one["mse"] == 1.0
    assert math.isnan(one["r2"])
    constant = regression(torch.ones(4, 1), torch.randn(4, 1), torch.ones(4), ("y",), ["pearson"])
    assert math.isnan(constant["pearson"])


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["acuracy"], "no metric 'acuracy'; did you mean `accuracy`"),
        (["mse"], "no metric 'mse'"),
        (["f1/godo"], "names no class; there are: bad, fair, good"),
        (["kappa/good"], "cannot compute 'kappa'"),
        (["auroc-micro"], "cannot compute 'auroc-micro'"),
    ],
)
def test_metrics_that_do_not_exist(data, names, part):
    with pytest.raises(RecipeError, match=part):
        compute(data, *names)


@pytest.mark.parametrize("kind", ["classification", "multi-label", "regression"])
def test_every_listed_name_can_be_computed(kind):
    """What `problems` lets pass must not fail after the training."""
    label = torch.tensor([0, 1, 2, 1, 0, 2])
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0]]).float()
    for name in names_for(kind):
        if kind == "classification":
            values = single_label(logits, label, torch.ones(6), CLASSES, [name])
        elif kind == "multi-label":
            values = multi_label(logits, flags, torch.ones(6), CLASSES, [name])
        else:
            values = regression(logits.abs(), flags + 1, torch.ones(6), CLASSES, [name])
        assert len(values) == 1, name


def test_unknown_names_are_found_without_torch():
    code = (
        "import sys; from sft_engine.metrics import problems;"
        "print(problems(['acuracy', 'f1', 'auroc/x'], 'classification'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'acuracy': 'did you mean `accuracy`?'} False"
    assert problems(["f1", "f1-micro", "matthews_corrcoef"], "classification") == {}
    assert "accuracy" in problems(["zzz"], "classification")["zzz"]


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("accuracy", "max"),
        ("validation/f1/error", "max"),
        ("test/noisy-loss/auroc", "max"),
        ("nll", "min"),
        ("loss", "min"),
        ("validation/rmse", "min"),
        ("hamming-distance", "min"),
        ("calibration_error", "min"),
        ("ece", "min"),
        ("r2", "max"),
        ("mean-perplexity", "min"),
        ("my-own-score", "max"),
    ],
)
def test_directions(name, direction):
    assert direction_of(name) == direction


def test_a_direction_is_not_guessed():
    with pytest.raises(RecipeError, match='set direction to "max" or "min"'):
        direction_of("wombats")


def test_averages_belong_to_classes_only():
    assert parse("mse-macro", "regression") is None
    assert parse("nll/good", "classification") is None
