"""Acceptance 3, 5, 6, 7 and 11: what is refused, where the cut retreats, and that nothing is left behind."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from zoo import (
    bert,
    freeze,
    full_pass,
    gpt2,
    lraspp,
    of_timm,
    pictures,
    planned,
    replayed_pass,
    same_passes,
    texts,
)

from sft_engine.flow import Batch
from sft_engine.modes import set_training_modes
from sft_engine.replay.check import kept_rows, replayed, require_same
from sft_engine.replay.probes import choose, probes, valid_positions
from sft_engine.replay.trace import Probe, Refused, generators


def shortest_alone(probe, *, left):
    """The first example of a probe without its padding."""
    mask = probe.inputs["attention_mask"][:1].bool()
    inputs = {name: value[:1][mask][None] for name, value in probe.inputs.items()}
    if "position_ids" not in inputs:
        return Probe(inputs, probe.read, {(name, 1): mask[mask][None] for name in inputs})
    assert left
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
    return Probe(inputs, probe.read, {(name, 1): mask[mask][None] for name in inputs})


# --- 3: padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [False, True])
def test_left_padding_needs_explicit_positions(positions):
    torch.manual_seed(0)
    model = freeze(gpt2(), "transformer.w", "transformer.h.0.", "transformer.h.1.")
    one, two = (
        texts(model, lengths, left=True, positions=positions) for lengths in ([3, 5], [3, 5, 9])
    )
    alone = (shortest_alone(two, left=True), 0)
    if positions:
        assert planned(model, one, two, alone).kept
    else:
        with pytest.raises(Refused, match="depends on its padding"):
            planned(model, one, two, alone)


def in_bf16(model, probe, *, exact=True):
    """The probe read under autocast, with or without a way to read it exactly."""

    def read(inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return [model(**inputs).logits]

    return replace(probe, read=read, exact=probe.read if exact else None)


def round_by_length(module):
    """Let a module of 32 bit be off by 1e-3 and more under autocast, as larger ones are."""
    own = module.forward

    def forward(hidden, *args, **kwargs):
        off = 1e-3 * hidden.shape[1] if torch.is_autocast_enabled("cpu") else 0.0
        found = own(hidden, *args, **kwargs)
        return type(found)(last_hidden_state=found.last_hidden_state + off)

    module.forward = forward


@pytest.mark.parametrize("exact", [False, True])
def test_half_precision_is_not_taken_for_a_dependence_on_padding(exact):
    """Rounding differs by 1e-3 between an example alone and among longer ones, where 1e-5 is allowed."""
    torch.manual_seed(0)
    model = freeze(bert(), "bert.embeddings", "bert.encoder")
    round_by_length(model.bert.encoder)
    plain = [texts(model, lengths) for lengths in ([3, 5], [3, 5, 9])]
    plain.append(shortest_alone(plain[1], left=False))
    one, two, alone = (in_bf16(model, probe, exact=exact) for probe in plain)
    if exact:
        assert planned(model, one, two, (alone, 0)).kept
    else:
        with pytest.raises(Refused, match="depends on its padding"):
            planned(model, one, two, (alone, 0))


def test_a_dependence_on_padding_is_found_in_half_precision():
    torch.manual_seed(0)
    model = freeze(gpt2(), "transformer.w", "transformer.h.0.", "transformer.h.1.")
    plain = [texts(model, lengths, left=True) for lengths in ([3, 5], [3, 5, 9])]
    plain.append(shortest_alone(plain[1], left=True))
    one, two, alone = (in_bf16(model, probe) for probe in plain)
    with pytest.raises(Refused, match="depends on its padding"):
        planned(model, one, two, (alone, 0))


def test_without_mask_or_lengths_padding_is_unknown():
    torch.manual_seed(0)
    model = freeze(bert(), "bert.embeddings")
    one, two = (texts(model, lengths) for lengths in ([3, 5], [3, 5, 9]))
    for probe in (one, two):
        probe.valid = {}
    with pytest.raises(Refused, match="which positions of 'input_ids' are padding"):
        planned(model, one, two)


def test_lengths_stand_for_a_mask():
    class Examples:
        lengths = np.array([2, 4, 3])

    ids = torch.zeros(2, 4, dtype=torch.long)
    valid = valid_positions({"ids": ids}, [1, 2], Examples())
    assert valid["ids", 1].tolist() == [[True] * 4, [True, True, True, False]]


# --- 5: nothing is left behind --------------------------------------------------------------------


def snapshot(model):
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "forwards": [vars(module).get("forward") for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "generators": generators(),
    }


def unchanged(before, after):
    states = before.pop("state"), after.pop("state")
    assert before == after
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("fails", [False, True])
def test_planning_leaves_nothing_behind(fails):
    torch.manual_seed(0)
    model = freeze(lraspp(), *(f"backbone.{i}." for i in range(4)))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    one, two = pictures(model, 2, 64), pictures(model, 3, 64)
    random.seed(1)
    before = snapshot(model)
    if fails:

        def read(inputs):
            two.read(inputs)
            torch.rand(3)
            random.random()
            raise KeyError("half way")

        with pytest.raises(KeyError, match="half way"):
            planned(model, one, Probe(two.inputs, read))
    else:
        cut = planned(model, one, two)
        assert cut.obstacle.endswith("normalises by the statistics of each batch")
    unchanged(before, snapshot(model))


# --- 6: negative controls -------------------------------------------------------------------------


def swapped(rows):
    return [each[[1, 0, 2]] for each in rows]


SPOILED = {
    "swapped": swapped,
    "zeros": lambda rows: [torch.zeros_like(each) for each in rows],
    "noise": lambda rows: [each + 1e-3 * torch.randn_like(each) for each in rows],
}


@pytest.mark.parametrize("how", SPOILED)
def test_check_sees_wrong_activations(how):
    torch.manual_seed(0)
    model = freeze(bert(), "bert.")
    model.eval()
    one, two = texts(model, [3, 5]), texts(model, [3, 5, 9])
    cut = planned(model, one, two)
    full = [output.detach() for output in two.run()]
    rows = kept_rows(cut, two)
    require_same("the logits", replayed(model, cut, two, rows)[0], full)
    with pytest.raises(Refused, match="the logits differs"):
        require_same("the logits", replayed(model, cut, two, SPOILED[how](rows))[0], full)


def test_what_hides_from_autograd_is_found():
    """A frozen module that reads a detached trainable weight looks frozen to autograd."""

    class Sly(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.frozen(self.first(x).detach()) + self.first(x))

    torch.manual_seed(0)
    model = freeze(Sly(), "frozen")
    one, two = (
        Probe({"x": torch.randn(n, 4)}, lambda inputs: [model(inputs["x"])]) for n in (2, 3)
    )
    with pytest.raises(Refused, match="depends on weights that train"):
        planned(model, one, two)


# --- 7: the cut retreats --------------------------------------------------------------------------


def live_units(cut):
    return [unit.key[0] for unit in cut.units]


def test_cut_retreats_before_live_dropout():
    torch.manual_seed(0)
    model = freeze(bert(), "bert.")
    model.train()  # as if nobody had put the frozen part into evaluation mode
    one, two, own = (texts(model, lengths) for lengths in ([3, 5], [3, 5, 9], [4, 6]))
    cut = planned(model, one, two)
    assert [leaf.name[0][0] for leaf in cut.kept] == ["bert.embeddings.LayerNorm"]
    assert cut.obstacle == "`bert.embeddings.dropout` draws at random"
    assert same_passes(full_pass(model, own), replayed_pass(model, cut, own))


def test_cut_retreats_before_live_drop_path():
    torch.manual_seed(0)
    model = of_timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, drop_path_rate=0.5)
    freeze(model, but=("head", "norm"))
    model.blocks[2].train()
    one, two, own = (pictures(model, n, 32) for n in (2, 3, 4))
    cut = planned(model, one, two)
    assert cut.obstacle == "`blocks.2.drop_path1` draws at random"
    assert "blocks.1" in live_units(cut)
    assert same_passes(full_pass(model, own), replayed_pass(model, cut, own))


def test_cut_retreats_before_batch_norm_in_training_mode():
    torch.manual_seed(0)
    model = freeze(of_timm("resnet18"), but=("fc",))
    model.layer2.train()
    one, two, own = (pictures(model, n, 32) for n in (2, 3, 4))
    cut = planned(model, one, two)
    assert cut.obstacle == "`layer2.0.bn1` normalises by the statistics of each batch"
    assert "layer1" in live_units(cut)
    assert "layer3" not in live_units(cut)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    full = full_pass(model, own)
    model.load_state_dict(state)
    assert same_passes(full, replayed_pass(model, cut, own))


def test_cut_retreats_before_a_trainable_bias():
    torch.manual_seed(0)
    model = freeze(bert(), "bert.")
    model.bert.encoder.layer[1].output.dense.bias.requires_grad_(True)
    set_training_modes(model)
    one, two, own = (texts(model, lengths) for lengths in ([3, 5], [3, 5, 9], [4, 6]))
    cut = planned(model, one, two)
    assert "bert.encoder.layer.0" in live_units(cut)
    assert not any(name.startswith("bert.encoder.layer.2") for name in live_units(cut))
    assert same_passes(full_pass(model, own), replayed_pass(model, cut, own))


def test_nothing_frozen_from_the_input_on_is_refused():
    torch.manual_seed(0)
    model = freeze(bert(), "bert.encoder")
    with pytest.raises(Refused, match="nothing from the input on is frozen"):
        planned(model, texts(model, [3, 5]), texts(model, [3, 5, 9]))


# --- 8: what else the loss reads ------------------------------------------------------------------


def test_hidden_states_that_the_loss_reads_are_kept():
    torch.manual_seed(0)
    model = freeze(bert(), "bert.")

    def read(inputs):
        outputs = model(**inputs, output_hidden_states=True)
        mask = inputs["attention_mask"].unsqueeze(-1)
        return [outputs.logits, (outputs.hidden_states[1] * mask).sum()]

    one, two, own = (texts(model, lengths, read=read) for lengths in ([3, 5], [3, 5, 9], [4, 6]))
    cut = planned(model, one, two)
    assert same_passes(full_pass(model, own), replayed_pass(model, cut, own))


# --- 11: inputs -----------------------------------------------------------------------------------


def test_inputs_that_differ_each_time_are_refused():
    def fetch(ids):
        return Batch({"x": torch.randn(len(ids), 3)}, {}, ids)

    with pytest.raises(Refused, match="'x' of an example is not the same twice"):
        probes([0, 1, 2], fetch, lambda batch: [batch.inputs["x"]], range(9))


def test_probes_have_different_lengths():
    class Examples(list):
        lengths = np.array([5, 5, 3, 5, 4, 5])

    chosen = choose(Examples(range(6)))
    assert [Examples.lengths[i] for i in chosen] == [3, 4, 5]
    with pytest.raises(Refused, match="fewer than"):
        choose([1, 2])
