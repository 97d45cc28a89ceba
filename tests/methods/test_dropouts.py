"""Dropout and stochastic depth in models of transformers, timm and torchvision, against their own options."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision.models
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    Qwen2Config,
)

from sft_regularizers.dropouts import DropPath, depth_shares, depth_slots, dropout_slots

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
SMALL |= {"intermediate_size": 16, "max_position_embeddings": 32}
TEXTS = {
    "bert": (BertConfig(**SMALL), 2),
    "distilbert": (DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=16), 2),
    "qwen2": (Qwen2Config(**SMALL, num_key_value_heads=1, pad_token_id=0), 2),
    "modernbert": (ModernBertConfig(**SMALL, pad_token_id=0), 2),
    "bart": (
        BartConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            vocab_size=40,
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
        ),
        3,
    ),
}
"""Configuration, and how many attentions it has."""


def head_of(model):
    """Return the names of parameters of the last module of a classifier."""
    last = list(model.named_children())[-1][0]
    return [name for name, _ in model.named_parameters() if name.startswith(f"{last}.")]


@pytest.mark.parametrize("name", TEXTS)
def test_attention_of_a_text_model_is_dropped(name):
    """Set to nothing everywhere, and then in attention: answers differ by that alone."""
    config, attentions = TEXTS[name]
    config.num_labels = 2
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).train()
    ids = torch.tensor([[5, 6, 7, 8, 2]])

    def answers():
        return [model(input_ids=ids).logits for _ in range(4)]

    slots = list(dropout_slots(model, head_of(model)))
    for slot in slots:
        slot.share = 0.0
    with torch.no_grad():
        assert all(torch.equal(each, answers()[0]) for each in answers())
        attention = [slot for slot in slots if slot.where == "attention"]
        assert len(attention) == attentions
        for slot in attention:
            slot.share = 0.5
        assert not all(torch.equal(each, answers()[0]) for each in answers())


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_the_head_of_a_text_model_has_its_own(name):
    config, _ = TEXTS[name]
    model = AutoModelForSequenceClassification.from_config(config)
    heads = [s.path for s in dropout_slots(model, head_of(model)) if s.where == "head"]
    assert heads == ["dropout"]


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "deit_tiny_patch16_224", "efficientnet_lite0"]
)
def test_the_rate_of_timm_is_ours(name):
    """Built with its own option, and built without it and set here."""
    theirs, ours = timm.create_model(name, drop_path_rate=0.3), timm.create_model(name)
    blocks = depth_slots(ours)
    present = [max(slot.share for slot in slots) for slots in blocks.values()]
    assert not any(present)
    for slots, share in zip(blocks.values(), depth_shares(present, 0.3, "linear"), strict=True):
        for slot in slots:
            slot.share = share
    expected = {
        path: module.drop_prob
        for path, module in theirs.named_modules()
        if type(module).__name__ == "DropPath"
    }
    found = {p: m.p for p, m in ours.named_modules() if isinstance(m, DropPath) and m.p}
    if name != "efficientnet_lite0":  # rises by i / n there, and not by i / (n - 1)
        assert found == pytest.approx(expected)
    assert len(expected) == len(found)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    again = [max(slot.share for slot in slots) for slots in depth_slots(theirs).values()]
    assert depth_shares(again, max(again), "own") == again


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_torchvision_keeps_its_proportions(name):
    model = torchvision.models.get_model(name, weights=None)
    blocks = depth_slots(model)
    present = [max(slot.share for slot in slots) for slots in blocks.values()]
    assert max(present) > 0
    doubled = depth_shares(present, 2 * max(present), "own")
    assert doubled == pytest.approx([2 * each for each in present])
    heads = [slot for slot in dropout_slots(model, head_of(model)) if slot.where == "head"]
    assert len(heads) == ("Dropout" in str(model.classifier))


def test_a_model_without_residual_branches_has_no_place():
    assert depth_slots(torchvision.models.get_model("resnet18", weights=None)) == {}
