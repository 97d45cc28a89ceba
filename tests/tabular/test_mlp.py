"""The backbone `mlp`: scale, saving, refusals; against plain numpy and torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from sft_engine import DataError, RecipeError
from sft_engine.builtin.mlp import Mlp, scale_of
from sft_engine.builtin.tabular import TabularClassification

TABLE = np.random.default_rng(0).normal(loc=[5, -300, 1e9], scale=[1, 20, 3], size=(40, 3))


def opened(**options) -> tuple[Mlp, TabularClassification]:
    backbone, task = Mlp(**options), TabularClassification()
    backbone.open(lambda name: name)
    task.prepare({}, ("u", "v"))
    return backbone, task


def rows_of(table: np.ndarray) -> Dataset:
    return Dataset.from_dict({"features": table.tolist(), "label": [0, 1] * (len(table) // 2)})


def test_the_training_split_sets_the_scale_of_all():
    backbone, task = opened()
    train = backbone.encode(rows_of(TABLE[:30]), task)
    test = backbone.encode(rows_of(TABLE[30:]), task)
    mean, deviation = TABLE[:30].mean(0), TABLE[:30].std(0)
    for examples, part in ((train, TABLE[:30]), (test, TABLE[30:])):
        expected = torch.tensor((part - mean) / deviation, dtype=torch.float32)
        assert_close(examples.columns["features"], expected)
    taken = train.take([3, 1])
    assert taken["label"].tolist() == [1, 1]
    one = backbone.encode_rows([{"features": TABLE[31].tolist(), "label": 1}], task)
    assert_close(one[0]["features"], test.columns["features"][1])
    assert one[0]["label"] == 1
    assert backbone.collate(one)["features"].shape == (1, 3)
    assert backbone.encode_rows([], task) == []


def test_a_constant_column_has_no_scale():
    mean, deviation = scale_of(np.array([[0.1, 1.0]] * 7 + [[0.1, 2.0]]))
    assert deviation[0] == 1.0
    assert mean[0] == pytest.approx(0.1)
    none = scale_of(TABLE, standardize=False)
    np.testing.assert_array_equal(np.stack(none), [[0, 0, 0], [1, 1, 1]])


def test_the_network_is_what_it_says():
    backbone, task = opened(hidden=[4, 5], activation="tanh", dropout=0.5)
    backbone.encode(rows_of(TABLE), task)
    model = backbone.build(task).eval()
    x = torch.randn(6, 3)
    first, second = (block[0] for block in model.blocks)
    hidden = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    expected = hidden @ model.head.weight.T + model.head.bias
    assert_close(backbone.forward(model, {"features": x}), expected)
    assert [block[2].p for block in model.blocks] == [0.5, 0.5]
    groups = backbone.layer_groups(model)
    assert [group.name for group in groups] == ["block.0", "block.1", "head"]
    named = sorted(name for group in groups for name in group.parameters)
    assert named == sorted(name for name, _ in model.named_parameters())


def test_no_hidden_layer_is_a_linear_model():
    backbone, task = opened(hidden=[])
    backbone.encode(rows_of(TABLE), task)
    model = backbone.build(task)
    assert [group.name for group in backbone.layer_groups(model)] == ["head"]
    assert model.head.weight.shape == (2, 3)


def test_saved_and_opened_again_it_is_the_same(tmp_path):
    backbone, task = opened(hidden=[4], activation="gelu")
    backbone.encode(rows_of(TABLE), task)
    model = backbone.build(task).eval()
    backbone.save(model, tmp_path, task)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}

    again, _ = opened(name=str(tmp_path), hidden=[9, 9])  # the folder knows better
    examples = again.encode_rows([{"features": row} for row in TABLE.tolist()], task)
    expected = backbone.encode_rows([{"features": row} for row in TABLE.tolist()], task)
    with torch.no_grad():
        logits = again.build(task).eval()(again.collate(examples)["features"])
        assert torch.equal(logits, model(backbone.collate(expected)["features"]))


def test_other_classes_get_a_new_head(tmp_path):
    backbone, task = opened(hidden=[4])
    backbone.encode(rows_of(TABLE), task)
    model = backbone.build(task)
    backbone.save(model, tmp_path, task)
    again, other = opened(name=str(tmp_path))
    other.prepare({}, ("u", "v", "w"))
    rebuilt = again.build(other)
    assert rebuilt.head.weight.shape == (3, 4)
    assert torch.equal(rebuilt.blocks[0][0].weight, model.blocks[0][0].weight)


def test_no_model_in_the_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"holds no model that this backbone has saved; name the"):
        Mlp(name=str(tmp_path)).open(lambda name: name)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "shape": {"hidden": [], "activation": "relu", "dropout": 0},
                "mean": [0],
                "deviation": [1],
            }
        )
    )
    backbone, task = opened(name=str(tmp_path))
    with pytest.raises(RecipeError, match="cannot read"):
        backbone.build(task)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ("5.1 3.5", 'a row has "5.1 3.5" where a table has numbers'),
        (None, "a row has null where a table has numbers"),
        ([1.0, 2.0], "a row has 2 features, the model takes 3"),
    ],
)
def test_rows_that_do_not_fit(features, says):
    backbone, task = opened()
    backbone.encode(rows_of(TABLE), task)
    with pytest.raises(DataError, match=says):
        backbone.encode_rows([{"features": features}], task)
