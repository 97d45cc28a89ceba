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
]
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


@pytest.fixture(scope="module")
def one(ranks):
    return ranks("runs", world=1, cases=CASES)


@pytest.fixture(scope="module")
def two(ranks):
    return ranks("runs", cases=CASES)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_one_process(one, two, name):
    ours, theirs = (load_file(g.folder / name / "model/model.safetensors") for g in (two, one))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-11


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_bitwise_equal(two, name):
    first, second = two[name]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["notes"] == second["notes"]


@pytest.mark.parametrize("name", CASES)
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
    name = "frozen, then thawed"
    case = {
        "overrides": [text.format(micro=4) for text in DECAY],
        "extensions": CASES[name]["extensions"],
    }
    for at in (6, 10):
        stopped = ranks("interrupted", at=at, codes=[75, 75], **case)
        again = ranks("resumed", folder=stopped.folder, **case)
        assert set(again["fingerprint"]) == {two[name][0]["fingerprint"]}
