"""design.md 6.4 under DDP: what is frozen does not move, what is thawed is averaged again."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

DECAY = [
    "optimizer.use=adamw",
    "optimizer.lr=0.01",
    "optimizer.weight_decay=0.1",
    "train.decay_all=true",
    "backbone.dtype=float64",
    "train.steps=12",
    "checkpoint.best=last",
    "train.micro_batch_size={micro}",
    "train.replay=false",
]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Sequential",
}
SCHEDULES = {
    "from the start, then thawed": "start = 0\nuntil = 7",
    "in mid-run": "start = 5",
    "frozen, then thawed": "start = 4\nuntil = 9",
    "while building": 'hook = "build"',
    "after wrapping": 'hook = "setup"',
    "before the first step": 'hook = "train"',
}
FROZEN = {
    "from the start, then thawed": range(7),
    "in mid-run": range(5, 13),
    "frozen, then thawed": range(4, 10),
}
CASES = {
    name: {"overrides": DECAY, "extensions": [f'"test/freeze"\n{options}'], "micro": 8}
    for name, options in SCHEDULES.items()
}

RATES = ['"auto-rgn"', '"layer-decay"\ndecay = 0.5']
PLUGIN = {
    "gradual-unfreezing": (["rewarm=2", "until=0.75"], RATES),
    "lp-ft": (["until=1.0", "patience=1", "metric=nll", "min_delta=100", "scale=0.5"], []),
    "chain-thaw": (["rewarm=2"], []),
    "surgical": (["train=middle"], []),
    "progressive-freezing": (["anneal=true", "first=0.25"], RATES),
}
"""Schedules of sft-freezing: options, and what sets learning rates beside them."""
for name, (options, extensions) in PLUGIN.items():
    own = [f"freezing.{option}" for option in [f"use={name}", *options]]
    CASES[name] = {"overrides": [*DECAY, *own], "extensions": extensions, "micro": 8}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_one_process(one, two, name):
    ours, theirs = (load_file(g.folder / name / "model/model.safetensors") for g in (two, one))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-11


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_bitwise_equal(two, name):
    first, second = two[name]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["notes"] == second["notes"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_frozen_bytes_stay_and_others_move(two, name):
    notes = two[name][0]["notes"]
    digests = {step: digest for step, _, digest in notes}
    if name not in FROZEN:
        assert len({digest for _, _, digest in notes}) == 1
        return
    frozen = [digests[step] for step in FROZEN[name] if step in digests]
    assert len(set(frozen)) == 1
    free = [digest for step, digest in digests.items() if step not in FROZEN[name]]
    assert len(set(free)) == len(free)


def test_resume_while_frozen(ranks, two):
    for at in (6, 10):
        assert resumed(ranks, "frozen, then thawed", at) == {
            two["frozen, then thawed"][0]["fingerprint"]
        }


@pytest.mark.parametrize("name", ["gradual-unfreezing", "lp-ft"])
def test_resume_after_a_thaw(ranks, two, name):
    assert resumed(ranks, name, 7) == {two[name][0]["fingerprint"]}


def resumed(ranks, name, at):
    """Interrupt both processes before a step; return the fingerprints with which they end."""
    case = {
        "overrides": [text.format(micro=4) for text in CASES[name]["overrides"]],
        "extensions": CASES[name]["extensions"],
    }
    stopped = ranks("interrupted", at=at, codes=[75, 75], **case)
    return set(ranks("resumed", folder=stopped.folder, **case)["fingerprint"])


@pytest.mark.slow
def test_sharded_weights_are_those_of_one_process(ranks, one):
    cases = {name: CASES[name] for name in PLUGIN}
    sharded = ranks("sharded", environ=FSDP, cases=cases)
    assert {result["kind"] for result in sharded.results} == {"DTensor"}
    for name in cases:
        ours, theirs = (
            load_file(g.folder / name / "model/model.safetensors") for g in (sharded, one)
        )
        assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-11, name
