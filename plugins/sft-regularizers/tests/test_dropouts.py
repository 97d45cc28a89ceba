"""Which dropout and stochastic depth a model has, and what becomes of it."""

from __future__ import annotations

import pytest
import torch
from one_step import use
from torch import nn

from sft_engine import RecipeError
from sft_regularizers.dropouts import (
    DropPath,
    depth_shares,
    depth_slots,
    dropout_slots,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.dropout = nn.Linear(2, 2), nn.Dropout(0.2)


class Functional(nn.Module):
    """As in models of transformers: shares that functions are given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.attention_dropout, self.activation_dropout, self.layerdrop = 0.1, 0, 0.3
        self.drop_path_rate, self.is_dropping = 0.4, True


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_drop = nn.Dropout(0.1)
        self.attention = Attention()
        self.torch = nn.MultiheadAttention(2, 1, dropout=0.3)
        self.functional = Functional()
        self.drop_path = DropPath(0.2)
        self.dropout = nn.Dropout2d(0.5)
        self.head = nn.Sequential(nn.Dropout(0.6), nn.Linear(2, 2))
        self.drop_rate = 0.7


def test_every_share_is_found_and_sorted():
    found = {
        slot.path: (slot.where, slot.share)
        for slot in dropout_slots(Model(), ["head.1.weight", "head.1.bias"])
    }
    assert found == {
        "pos_drop": ("hidden", 0.1),
        "attention.dropout": ("attention", 0.2),
        "torch.dropout": ("attention", 0.3),
        "functional.attention_dropout": ("attention", 0.1),
        "functional.activation_dropout": ("hidden", 0.0),
        "dropout": ("head", 0.5),
        "head.0": ("head", 0.6),
        "drop_rate": ("head", 0.7),
    }


def test_a_share_of_the_recipe_is_that_of_the_model(seen):
    """The network of the spy is the model as training finds it."""
    shares = [block[2].p for block in seen(use("dropout", p=0.4)).run.model.blocks]
    assert shares == [0.4, 0.4]
    run = seen(use("dropout", hidden=0.3, only=["blocks.1.*"]), ["backbone.dropout=0.1"])
    assert [block[2].p for block in run.run.model.blocks] == [0.1, 0.3]
    (said,) = [r["message"] for r in run.records if r["kind"] == "notice"]
    assert said == "dropout was changed from 0.1 to 0.3 in 1 place, such as blocks.1.2"
    run = seen(use("dropout", p=0.0))
    (said,) = [r["message"] for r in run.records if r["kind"] == "notice"]
    assert said == "dropout is as it was: the model has what the recipe asks for"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "dropout changes nothing without a share: set `p`, `hidden`, `attention` or `head`"),
        (
            {"attention": 0.1},
            "`attention` of dropout: TinyNet has no attention dropout to set; it has dropout of: hidden",
        ),
        (
            {"p": 0.1, "only": ["layer.*"]},
            r'`only` of dropout: "layer.\*" matches no dropout of TinyNet, such as `blocks.0.2`',
        ),
    ],
)
def test_what_is_not_there_is_refused(seen, tmp_path, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        seen(use("dropout", **options))
    assert not list(tmp_path.glob("run*"))


def test_a_model_without_dropout_is_refused(seen):
    with pytest.raises(
        RecipeError, match="dropout: TinyNet has no dropout to set: leave the option"
    ):
        seen(use("dropout", p=0.1), ["backbone.depth=0"])


def test_a_model_without_stochastic_depth_is_refused(seen):
    with pytest.raises(
        RecipeError, match="drop-path: TinyNet has no stochastic depth: leave drop-path"
    ):
        seen(use("drop-path"))


class Block(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.drop_path1, self.drop_path2 = first, second


def test_places_that_are_empty_are_filled():
    """Timm has an identity there, or nothing at all."""
    model = nn.Sequential(Block(nn.Identity(), None), Block(DropPath(0.2), nn.Identity()))
    blocks = depth_slots(model)
    assert {path: [slot.path for slot in slots] for path, slots in blocks.items()} == {
        "0": ["0.drop_path1", "0.drop_path2"],
        "1": ["1.drop_path1", "1.drop_path2"],
    }
    assert [slot.share for slots in blocks.values() for slot in slots] == [0, 0, 0.2, 0]
    assert all(isinstance(each, DropPath) for block in model for each in block.children())


def test_probabilities_of_the_blocks():
    assert depth_shares([0.0, 0.0, 0.0], 0.2, "own") == pytest.approx([0, 0.1, 0.2])
    assert depth_shares([0.1, 0.1, 0.1], 0.2, "linear") == pytest.approx([0, 0.1, 0.2])
    assert depth_shares([0.0, 0.05, 0.1], 0.2, "own") == pytest.approx([0, 0.1, 0.2])
    assert depth_shares([0.0, 0.05, 0.1], 0.2, "constant") == [0.2] * 3
    own = torch.linspace(0, 0.3, 7).tolist()
    assert depth_shares(own, own[-1], "own") == own
    assert depth_shares([0.0], 0.2, "own") == [0.0]


def test_stochastic_depth_keeps_the_mean_of_every_example():
    torch.manual_seed(0)
    path, branch = DropPath(0.3), torch.ones(50_000, 2)
    kept = path(branch)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert kept.mean().item() == pytest.approx(1, abs=3 * (0.3 / 0.7 / len(kept)) ** 0.5)
    assert path.eval()(branch) is branch
    assert DropPath()(branch) is branch
