"""Training modes follow what is frozen; against the rule written out for each model by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sft_engine.modes import set_training_modes


def freeze(model, *prefixes):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes) if prefixes else True)
    return model


def in_training(model):
    return {name for name, module in model.named_modules() if module.training}


class Gpt(nn.Module):
    """Dropout stands between embeddings and blocks, in no module of its own, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(4, 4)
        self.drop = nn.Dropout(0.5)
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(2))
        self.ln_f = nn.LayerNorm(4)
        self.score = nn.Linear(4, 2)


class Bert(nn.Module):
    """Dropout stands before the classifier, and once more behind everything, as in DistilBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(4, 2)
        self.last = nn.Dropout(0.5)


def test_nothing_frozen_is_plain_training():
    model = freeze(Gpt().eval())
    set_training_modes(model)
    assert in_training(model) == {name for name, _ in model.named_modules()}


def test_dropout_between_frozen_embeddings_and_frozen_blocks_is_quiet():
    model = freeze(Gpt(), "wte", "h.0")
    set_training_modes(model)
    assert in_training(model) == {"", "h", "h.1", "h.1.0", "h.1.1", "ln_f", "score"}


def test_dropout_before_the_first_trainable_block_is_alive():
    model = freeze(Gpt(), "wte")
    set_training_modes(model)
    assert {"wte"} == {name for name, _ in model.named_modules()} - in_training(model)


def test_head_dropout_is_alive_and_the_trunk_is_quiet():
    model = freeze(Bert(), "bert")
    set_training_modes(model)
    assert in_training(model) == {"", "dropout", "classifier", "last"}
    trunk, inputs = model.bert, torch.randn(3, 4)
    assert torch.equal(trunk(inputs), trunk(inputs))
    assert trunk[2].num_batches_tracked == 0


def test_a_module_with_one_trainable_parameter_trains():
    model = Bert()
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    model.bert[2].bias.requires_grad_(True)
    set_training_modes(model)
    assert {"bert", "bert.1", "bert.2"} <= in_training(model)
    assert "bert.0" not in in_training(model)


@pytest.mark.parametrize("thawed", [False, True])
def test_modes_come_back_when_layers_thaw(thawed):
    model = freeze(Gpt(), "wte", "h")
    set_training_modes(model)
    if thawed:
        freeze(model)
        set_training_modes(model)
    assert ("h.0.1" in in_training(model)) is thawed
