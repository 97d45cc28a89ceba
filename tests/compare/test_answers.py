"""Metrics as functions of means are those of `sft_engine.metrics`, which torchmetrics computes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from sft_engine import metrics
from sft_engine.builtin.losses import example_loss
from sft_engine.comparing import answers as module
from sft_engine.comparing.answers import columns_of, measure_of, read_answers, value_of
from sft_engine.errors import DataError

NAMES = ("a", "b", "c", "d")
LOGITS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double() * 2


def write(path, rows):
    path.write_text("".join(json.dumps({"row": i, **row}) + "\n" for i, row in enumerate(rows)))
    return read_answers(path)


def single(path, label):
    shares = LOGITS.softmax(dim=1).tolist()
    return write(
        path,
        [
            {
                "prediction": NAMES[int(np.argmax(p))],
                "probabilities": dict(zip(NAMES, p, strict=True)),
            }
            | {"label": NAMES[true]}
            for p, true in zip(shares, label.tolist(), strict=True)
        ],
    )


def of_kind(kind):
    return sorted(module._MEASURES[kind])


def everywhere(answers, name):
    """Return a metric of all examples, and of a resample that is given as a matrix of means."""
    measure = measure_of(name, answers.kind)
    columns = columns_of(measure, answers)
    both = np.stack([columns.mean(axis=0), columns[:30].mean(axis=0)])
    assert measure.finish(both)[0] == pytest.approx(value_of(measure, answers), nan_ok=True)
    return value_of(measure, answers)


@pytest.mark.parametrize("name", of_kind("classification"))
@pytest.mark.parametrize("classes", [4, 3, 2])
def test_of_one_class_out_of_many(name, classes, tmp_path):
    # With fewer classes in the truth than the model has, one is absent, but may be predicted.
    label = torch.arange(60) % classes
    expected = metrics.single_label(LOGITS, label, example_loss(LOGITS, label), NAMES, [name])
    assert everywhere(single(tmp_path / "p.jsonl", label), name) == pytest.approx(
        expected[name], abs=1e-6
    )


@pytest.mark.parametrize("name", of_kind("multi-label"))
def test_of_any_out_of_many_labels(name, tmp_path):
    flags = (torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    flags[:, 3] = 0
    expected = metrics.multi_label(LOGITS, flags, example_loss(LOGITS, flags), NAMES, [name])
    shares = LOGITS.sigmoid().tolist()
    rows = [
        {
            "prediction": [n for n, share in zip(NAMES, p, strict=True) if share > 0.5],
            "probabilities": dict(zip(NAMES, p, strict=True)),
            "label": [n for n, on in zip(NAMES, row, strict=True) if on],
        }
        for p, row in zip(shares, flags.tolist(), strict=True)
    ]
    found = write(tmp_path / "p.jsonl", rows)
    assert found.kind == "multi-label"
    assert everywhere(found, name) == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("name", of_kind("regression"))
@pytest.mark.parametrize("targets", [1, 3])
def test_of_numbers(name, targets, tmp_path):
    outputs = LOGITS[:, :targets]
    truth = 5 + outputs + torch.randn(60, targets, generator=torch.Generator().manual_seed(2))
    names = NAMES[:targets]
    expected = metrics.regression(outputs, truth, torch.zeros(60), names, [name])

    def shown(row):
        return row[0] if targets == 1 else dict(zip(names, row, strict=True))

    rows = [
        {"prediction": shown(p), "label": shown(t)}
        for p, t in zip(outputs.tolist(), truth.tolist(), strict=True)
    ]
    found = write(tmp_path / "p.jsonl", rows)
    assert found.kind == "regression"
    assert found.right is None
    assert everywhere(found, name) == pytest.approx(expected[name], abs=1e-5)


def test_examples_without_a_label_are_left_out_and_rows_are_sorted(tmp_path):
    row = {"prediction": "a", "probabilities": {"a": 1.0, "b": 0.0}}
    lines = [{"row": 7, **row, "label": "b"}, {"row": 3, **row, "label": "a"}]
    path = tmp_path / "p.jsonl"
    path.write_text(
        "".join(json.dumps(x) + "\n" for x in [*lines, {"row": 1, **row, "label": None}])
    )
    found = read_answers(path)
    assert found.rows == (3, 7)
    assert found.right.tolist() == [True, False]


def test_one_missing_answer_makes_every_metric_nan_as_in_the_engine(tmp_path):
    bad = {"a": math.nan, "b": math.nan}
    rows = [
        {"prediction": None, "probabilities": bad, "label": "a"},
        {"prediction": "b", "probabilities": {"a": 0.1, "b": 0.9}, "label": "b"},
    ]
    found = write(tmp_path / "p.jsonl", rows)
    for name in of_kind("classification"):
        assert math.isnan(value_of(measure_of(name, "classification"), found)), name
    broken = write(
        tmp_path / "r.jsonl", [{"prediction": None, "label": 1.0}, {"prediction": 1, "label": 2}]
    )
    assert math.isnan(value_of(measure_of("mse", "regression"), broken))


def test_nothing_to_read_is_none(tmp_path):
    assert read_answers(tmp_path / "none.jsonl") is None
    assert write(tmp_path / "p.jsonl", [{"prediction": "a", "probabilities": {"a": 1.0}}]) is None
    assert measure_of("auroc", "classification") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json\n", r"p\.jsonl:1 is no prediction: it must be a JSON object with `row`"),
        ('{"label": "a"}\n', r"p\.jsonl:1 is no prediction"),
        ('{"row": 1, "label": "a"}\n', r"holds no predictions of one task \(KeyError"),
        ('{"row": 1, "label": "a", "probabilities": {"b": 1.0}}\n', "holds no predictions of one"),
    ],
)
def test_what_is_no_prediction_is_said_in_a_sentence(text, said, tmp_path):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        read_answers(tmp_path / "p.jsonl")
