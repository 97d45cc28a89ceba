from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from sft_engine import DataError, RecipeError
from sft_engine.builtin import losses
from sft_engine.builtin.classification import Classification
from sft_engine.builtin.examples import TensorExamples
from sft_engine.builtin.tasks import TextClassification, TextRegression
from sft_engine.columns import column_of
from sft_engine.flow import Batch

PORTIONS = (slice(0, 5), slice(5, 6), slice(6, 17))
"""One batch of 17 as three micro-batches of different size."""


def split(labels: Any, feature: Any = None, text: Any = None) -> Dataset:
    texts = text or [f"text {i}" for i in range(len(labels))]
    features = feature and Features({"text": Value("string"), "label": feature})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def ready(labels: Any, names: tuple[str, ...] = (), **options: Any) -> TextClassification:
    task = TextClassification(**options)
    task.prepare({"train": split(labels)}, names)
    return task


def batch_of(label: torch.Tensor) -> Batch:
    return Batch(inputs={}, targets={"label": label}, ids=list(range(len(label))))


def mean_over_portions(task: Any, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Divide the sums of micro-batches by what the whole window counts, as the loop does."""
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for portion in PORTIONS:
        batch = batch_of(label[portion])
        term = task.loss(logits[portion], batch)
        total = total + term.value
        count += task.units(batch)[term.per]
    return total / count


def encoded(prepared: Dataset) -> Any:
    return column_of(prepared, "label").to_pylist()


# --- Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced", [0.2, 1.0, 3.5]])
def test_classification_loss_is_torchs_mean_over_the_whole_window(smoothing, weights):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (17,), generator=generator)
    task = ready(label.tolist(), class_weights=weights, label_smoothing=smoothing)
    logits = torch.randn(17, 3, generator=generator, dtype=torch.float64)
    weight = {
        "none": None,
        "balanced": torch.tensor(
            compute_class_weight("balanced", classes=np.arange(3), y=label.numpy())
        ),
    }.get(str(weights), torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64))
    expected = functional.cross_entropy(logits, label, weight, label_smoothing=smoothing)
    torch.testing.assert_close(
        mean_over_portions(task, logits, label), expected, rtol=1e-12, atol=0
    )


def test_masked_targets_are_neither_learned_nor_counted():
    label = torch.tensor([0, -100, 2, 1, -100, 1, 0, 0, 2, 1, 1, -100, 0, 2, 2, 1, 0])
    logits = torch.randn(17, 3, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    task = ready(label.tolist(), class_weights=weight.tolist())
    expected = functional.cross_entropy(logits, label, weight)
    torch.testing.assert_close(mean_over_portions(task, logits, label), expected)
    assert task.units(batch_of(label))["item"] == 14
    assert task.head.names == ("0", "1", "2")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_probabilities_may_be_targets(smoothing):
    task = ready([0, 1, 2], class_weights=[1.0, 2.0, 4.0], label_smoothing=smoothing)
    logits = torch.randn(6, 3)
    hard = torch.tensor([0, 1, 2, 2, 1, 0])
    one_hot = functional.one_hot(hard, 3).float()
    same = task.loss(logits, batch_of(one_hot)), task.loss(logits, batch_of(hard))
    torch.testing.assert_close(same[0].value, same[1].value)
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    value = task.loss(logits, batch_of(mixed)).value
    smooth = mixed * (1 - smoothing) + smoothing / 3
    by_hand = -(torch.tensor([1.0, 2.0, 4.0]) * smooth * logits.log_softmax(1)).sum()
    torch.testing.assert_close(value, by_hand)


def test_losses_are_computed_in_float32_or_better():
    task = ready(["a", "b"])
    label = torch.tensor([0, 1, 1])
    logits = torch.randn(3, 2).bfloat16()
    value = task.loss(logits, batch_of(label)).value
    assert value.dtype == torch.float32
    exact = functional.cross_entropy(logits.float(), label, reduction="sum")
    torch.testing.assert_close(value, exact)
    assert task.loss(logits.double(), batch_of(label)).value.dtype == torch.float64
    assert task.predictions(logits, batch_of(label))["logits"].dtype == torch.float32


def test_multi_label_loss_is_torchs_mean_over_the_whole_window():
    label = (torch.arange(51).reshape(17, 3) % 4 == 0).float()
    logits = torch.randn(17, 3, dtype=torch.float64)
    task = TextClassification(labels="multi", class_weights="balanced", label_smoothing=0.1)
    task.prepare({"train": split(label.tolist())}, ())
    positive = label.double().sum(0)
    expected = functional.binary_cross_entropy_with_logits(
        logits, label.double() * 0.9 + 0.05, pos_weight=(17 - positive) / positive
    )
    torch.testing.assert_close(mean_over_portions(task, logits, label), expected)
    assert task.head.kind == "multi-label"


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, functional.mse_loss),
        ({"objective": "absolute"}, functional.l1_loss),
        ({"objective": "huber", "delta": 0.5}, lambda a, b: functional.huber_loss(a, b, delta=0.5)),
    ],
)
@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_loss_is_torchs_mean_over_the_whole_window(options, oracle, outputs):
    label = torch.randn(17, outputs)
    task = TextRegression(**options)
    task.prepare({"train": split(label.tolist())}, ())
    logits = torch.randn(17, outputs, dtype=torch.float64)
    expected = oracle(logits, label.double())
    torch.testing.assert_close(mean_over_portions(task, logits, label), expected)
    assert task.head.outputs == outputs


def test_weights_follow_the_logits_and_do_not_touch_them():
    task = ready(["a", "b", "b"], class_weights="balanced")
    model = nn.Linear(4, 2)
    batch = batch_of(torch.tensor([0, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = task.loss(model(torch.ones(2, 4)), batch)
    term.value.backward()
    assert term.per == "weight"
    assert task.units(batch) == {"item": 2.0, "weight": pytest.approx(1.5 + 0.75)}
    assert model.weight.grad is not None


# --- Labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "feature", "names", "ids"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        (["10", "9", "1"], None, ("1", "9", "10"), [2, 1, 0]),
        ([3, -1, 3], None, ("-1", "3"), [1, 0, 1]),
        ([True, False], None, ("false", "true"), [1, 0]),
        ([1.0, 0.5], None, ("0.5", "1"), [1, 0]),
        ([1, 0], ClassLabel(names=["neg", "pos"]), ("neg", "pos"), [1, 0]),
        ([2, 2], ClassLabel(names=["x", "a", "b"]), ("x", "a", "b"), [2, 2]),
    ],
)
def test_class_names_are_learnt_from_training(labels, feature, names, ids):
    task = TextClassification()
    prepared = task.prepare({"train": split(labels, feature)}, ())
    assert task.head.names == names
    assert encoded(prepared["train"]) == ids
    assert prepared["train"].features["label"].dtype == "int64"


@pytest.mark.parametrize(
    ("labels", "feature", "ids"),
    [
        (["good", "bad"], None, [1, 0]),
        ([1, 0], None, [1, 0]),
        (["1", "0"], None, [1, 0]),
        ([1, 0], ClassLabel(names=["neg", "pos"]), [1, 0]),
        ([1, 0], ClassLabel(names=["good", "bad"]), [0, 1]),
    ],
)
def test_given_names_may_name_labels_or_ids(labels, feature, ids):
    task = TextClassification()
    prepared = task.prepare({"train": split(labels, feature)}, ("bad", "good"))
    assert encoded(prepared["train"]) == ids


def test_one_label_has_one_name_whatever_the_file_calls_it():
    task = TextClassification()
    splits = {"train": split([0, 1]), "test": split(["1", "0"]), "other": split([1.0, 0.0])}
    prepared = task.prepare(splits, ())
    assert encoded(prepared["test"]) == encoded(prepared["other"]) == [1, 0]


def test_an_unknown_label_is_named_with_split_row_and_what_is_known():
    task = TextClassification()
    rows = split(["pos", "neg", "neutrl", "neutrl"]).add_column("row", [4, 8, 15, 16])
    with pytest.raises(DataError) as caught:
        task.prepare({"train": split(["pos", "neg", "neutral"]), "test": rows}, ())
    for part in ("'test'", "row 15", "'neutrl'", "'neg', 'neutral', 'pos'", "did you mean"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "feature", "count"),
    [
        (["a", None, "b"], None, 1),
        (["a", "", "b"], None, 1),
        ([0, -1, 1], ClassLabel(names=["a", "b"]), 1),
        ([0.0, float("nan"), float("nan")], Value("float64"), 2),
    ],
)
def test_missing_labels_are_counted(labels, feature, count):
    with pytest.raises(DataError, match=rf"'train': {count} of 3 rows have no label \(row 1"):
        TextClassification().prepare({"train": split(labels, feature)}, ())


def test_a_split_without_any_label_says_how_to_leave_it_out():
    hidden = split([-1, -1], ClassLabel(names=["a", "b"]))
    with pytest.raises(DataError, match=r"'test' has no labels .*splits = \{test = \"\"\}"):
        TextClassification().prepare({"train": split(["a", "b"]), "test": hidden}, ())


@pytest.mark.parametrize(
    ("labels", "names", "part"),
    [
        (["a", "a"], (), "only the label 'a'"),
        (["a", "b"], ("a", "a"), "stands there twice"),
        ([["a"], ["b"]], (), 'labels = "multi"'),
    ],
)
def test_labels_that_cannot_be_classes(labels, names, part):
    with pytest.raises(DataError, match=part):
        TextClassification().prepare({"train": split(labels)}, names)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0, 2.0]])
def test_class_weights_must_fit_the_classes(weights):
    with pytest.raises(RecipeError, match=r"task\.class_weights"):
        ready(["a", "b", "c"], class_weights=weights)


def test_balanced_weights_ignore_masked_rows_and_absent_classes():
    weight = losses.balanced_weights(torch.tensor([1, 3, 0]))
    torch.testing.assert_close(weight, torch.tensor([4 / 3, 4 / 9, 0.0], dtype=torch.float64))
    with_mask = ready([0, 1, 1, -100], class_weights="balanced")
    assert with_mask._weight.tolist() == ready([0, 1, 1], class_weights="balanced")._weight.tolist()


@pytest.mark.parametrize(
    ("labels", "feature", "options", "names"),
    [
        ([["a", "b"], [], ["b"]], None, {}, ("a", "b")),
        (["a; b", "", "b"], None, {"separator": ";"}, ("a", "b")),
        ([[0, 1], [], [1]], List(ClassLabel(names=["a", "b"])), {}, ("a", "b")),
        ([[True, True], [False, False], [False, True]], None, {}, ("0", "1")),
        ([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]], None, {}, ("0", "1")),
    ],
)
def test_multi_label_columns(labels, feature, options, names):
    task = TextClassification(labels="multi", **options)
    prepared = task.prepare({"train": split(labels, feature)}, ())
    assert task.head.names == names
    assert encoded(prepared["train"]) == [[1, 1], [0, 0], [0, 1]]


def test_lists_of_zero_and_one_are_flags_if_the_classes_have_other_names():
    task = TextClassification(labels="multi")
    prepared = task.prepare({"train": split([[0, 1], [1, 1]])}, ("a", "b"))
    assert encoded(prepared["train"]) == [[0, 1], [1, 1]]


def test_rows_with_different_numbers_of_flags():
    with pytest.raises(DataError, match="from 1 to 2 of them"):
        TextClassification(labels="multi").prepare({"train": split([[True], [True, False]])}, ())


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["1.5", "two"], "row 1 .*'two' in column 'label' is not a number"),
        ([1.0, None], "1 of 2 rows have no label"),
        ([1.0, float("inf")], "row 1 .*infinite"),
        ([[1.0, 2.0], [1.0]], "from 1 to 2 numbers"),
        ([{"a": 1}, {"a": 2}], "not numbers"),
    ],
)
def test_regression_targets_that_are_no_numbers(labels, part):
    with pytest.raises(DataError, match=part):
        TextRegression().prepare({"train": split(labels)}, ())


def test_regression_reads_numbers_out_of_text():
    task = TextRegression()
    prepared = task.prepare({"train": split(["1.5", " 2 "])}, ())
    assert encoded(prepared["train"]) == [[1.5], [2.0]]
    assert (task.head.kind, task.head.names) == ("regression", ("label",))


def test_texts_must_be_text():
    rows = split(["a", "b"], text=[1, 2])
    with pytest.raises(DataError, match="'text' holds int64, not text"):
        TextClassification().prepare({"train": rows}, ())


def test_names_alone_make_a_head_for_prediction():
    task = TextClassification()
    task.prepare({}, ("bad", "good"))
    assert task.head.outputs == 2
    batch = Batch(inputs={}, targets={}, ids=[0])
    records = task.records(task.predictions(torch.tensor([[0.0, 2.0]]), batch))
    assert records[0]["prediction"] == "good"
    assert task.units(batch) == {"item": 1.0}
    assert task.metrics({"logits": torch.zeros(1, 2)}, ()) == {}


def test_encoding_a_selection_keeps_its_rows_and_order():
    rows = split([str(i % 3) for i in range(30)]).add_column("row", list(range(30)))
    chosen = rows.select([29, 3, 3, 14])
    task = TextClassification()
    prepared = task.prepare({"train": rows, "test": chosen}, ())["test"]
    assert encoded(prepared) == [2, 0, 0, 2]
    assert prepared["text"][:] == ["text 29", "text 3", "text 3", "text 14"]


def test_strata_are_equal_where_labels_are():
    assert TextClassification().strata(split(["b", "a", "b"])).tolist() == [0, 1, 0]
    assert TextClassification(labels="multi").strata(split([["b"]])) is None


# --- What comes out ------------------------------------------------------------------------------


def test_targets_are_collated_from_rows_and_from_tensors():
    task = ready(["a", "b"])
    assert task.targets([{"label": 1}, {"label": 0}], {})["label"].tolist() == [1, 0]
    examples = TensorExamples({"x": torch.zeros(3, 2), "label": torch.tensor([1, 0, 1])})
    assert task.targets(examples.__getitems__([2, 1]), {})["label"].tolist() == [1, 0]
    assert task.targets([{"x": 1}], {}) == {}
    numbers = TextRegression().targets([{"label": [0.5]}, {"label": [2.0]}], {})["label"]
    assert (numbers.dtype, numbers.tolist()) == (torch.float32, [[0.5], [2.0]])


def test_records_are_json_with_names_and_probabilities():
    task = ready(["neg", "pos"])
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [float("nan"), 0.0]])
    predictions = task.predictions(logits, batch_of(torch.tensor([1, 1, -100])))
    records = json.loads(json.dumps(task.records(predictions)))
    assert [r["prediction"] for r in records] == ["pos", "neg", None]
    assert [r["label"] for r in records] == ["pos", "pos", None]
    assert records[0]["probabilities"] == pytest.approx(
        {"neg": 0.268941, "pos": 0.731059}, rel=1e-4
    )


def test_multi_label_and_regression_records():
    task = TextClassification(labels="multi")
    task.prepare({}, ("a", "b"))
    outputs = task.predictions(torch.tensor([[2.0, -2.0]]), batch_of(torch.tensor([[1.0, 1.0]])))
    record = task.records(outputs)[0]
    assert (record["prediction"], record["label"]) == (["a"], ["a", "b"])
    numbers = TextRegression()
    kept = numbers.predictions(torch.tensor([[1.5]]), batch_of(torch.tensor([[1.0]])))
    assert numbers.records(kept) == [{"prediction": 1.5, "label": 1.0}]


def test_the_kept_loss_is_plain_so_that_runs_compare():
    plain = ready([0, 1, 1])
    other = ready([0, 1, 1], class_weights="balanced", label_smoothing=0.3)
    logits, label = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    kept = [task.predictions(logits, batch_of(label))["loss"] for task in (plain, other)]
    assert torch.equal(*kept)
    torch.testing.assert_close(kept[0].mean(), functional.cross_entropy(logits, label))


def test_another_input_needs_a_subclass_and_nothing_else():
    class ImageClassification(Classification):
        inputs: ClassVar = {"image": True}

        def __init__(self, label_smoothing: float = 0.0) -> None:
            super().__init__("single", "none", label_smoothing, "")

    task = ImageClassification()
    rows = Dataset.from_dict({"image": ["a.png", "b.png"], "label": ["cat", "dog"]})
    assert encoded(task.prepare({"train": rows}, ())["train"]) == [0, 1]
    assert task.main_metric == "accuracy"


def test_tensor_examples_take_what_is_asked_for():
    examples = TensorExamples(
        {"x": torch.arange(6).reshape(3, 2), "label": torch.tensor([5, 6, 7])}
    )
    taken = examples.take([2, 0, 2])
    assert taken["x"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert taken["label"].tolist() == [7, 5, 7]
    assert len(examples) == 3
    with pytest.raises(ValueError, match="same length"):
        TensorExamples({"x": torch.zeros(2), "y": torch.zeros(3)})
