"""Acceptance 1, 4 and 8: the same logits and gradients, bit for bit, over many families."""

from __future__ import annotations

import pytest
import torch
from zoo import (
    CASES,
    FAST,
    bert,
    build,
    distilbert,
    freeze,
    full_pass,
    of_timm,
    of_torchvision,
    pictures,
    planned,
    probe_of,
    replayed_pass,
    same_passes,
    texts,
)

from sft_engine.replay.trace import Refused


def marked(name, position):
    mark = [] if name in FAST else [pytest.mark.slow]
    return pytest.param(name, position, id=f"{name}-{position}", marks=mark)


ALL = [marked(name, i) for name, case in CASES.items() for i in range(len(case.cuts))]


@pytest.mark.parametrize(("name", "position"), ALL)
def test_replay_is_bit_equal(name, position):
    case = CASES[name]
    model = build(case, case.cuts[position])
    first, second = (probe_of(case, model, lengths) for lengths in ([3, 5], [3, 5, 9]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cut = planned(model, first, second)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    # Shapes that it was not planned with, random draws in what trains.
    for lengths in ([4, 2], [7, 3, 6, 2]):
        probe = probe_of(case, model, lengths, seed=len(lengths))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        full = full_pass(model, probe)
        model.load_state_dict(state)  # statistics of batch norm in what trains have moved
        assert full[1]
        assert same_passes(full, replayed_pass(model, cut, probe))


def test_the_fewest_and_smallest_tensors_are_kept():
    model = build(CASES["bert"], ("bert.",))
    cut = planned(model, texts(model, [3, 5]), texts(model, [3, 5, 9]))
    (leaf,) = cut.kept
    assert kept_shape(cut, texts(model, [3, 5])) == [(2, 32)]  # the pooled state, not all tokens
    assert leaf.name == (("bert", 0), 1)
    model = build(CASES["hf-vit"], ("vit.",))
    probes = [probe_of(CASES["hf-vit"], model, lengths) for lengths in ([0] * 2, [0] * 3)]
    cut = planned(model, *probes)
    assert kept_shape(cut, probes[0]) == [(2, 32)]  # one token of 17
    assert cut.stand_ins == ("pixel_values",)


def kept_shape(cut, probe):
    from sft_engine.replay.check import kept_rows

    return [tuple(rows.shape) for rows in kept_rows(cut, probe)]


def test_unet_keeps_every_skip():
    model = build(CASES["unet"], ("down",))
    cut = planned(model, pictures(model, 2, 16), pictures(model, 3, 16))
    assert [leaf.name[0][0] for leaf in cut.kept] == ["down1", "down2", "down3"]


HEADS = {
    "bert": (bert, ("classifier",), texts),
    "distilbert": (distilbert, ("pre_classifier", "classifier"), texts),
    "tv-efficientnet": (lambda: of_torchvision("efficientnet_b0"), ("classifier",), None),
    "timm": (lambda: of_timm("efficientnet_lite0", drop_rate=0.3), ("classifier",), None),
}


@pytest.mark.parametrize("name", HEADS)
def test_dropout_of_the_head_stays_alive(name):
    make, head, probe = HEADS[name]
    torch.manual_seed(0)
    model = freeze(make(), but=head)
    one, two, own = (
        [texts(model, lengths) for lengths in ([3, 5], [3, 5, 9], [6, 6, 6, 6])]
        if probe
        else [pictures(model, number, 32) for number in (2, 3, 4)]
    )
    cut = planned(model, one, two)
    first, again = (replayed_pass(model, cut, own, seed=seed)[0][0] for seed in (1, 2))
    assert not torch.equal(first, again)
    assert torch.equal(first, full_pass(model, own, seed=1)[0][0])


def test_nothing_trainable_is_said():
    model = freeze(bert(), "")
    with pytest.raises(Refused, match="nothing is trainable"):
        planned(model, texts(model, [3, 5]), texts(model, [3, 5, 9]))
