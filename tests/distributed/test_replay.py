"""Replay on two processes: each keeps what it has seen, and both take the same steps as without."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

FROZEN = [
    "freezing.use=frozen",
    "optimizer.use=adamw",
    "optimizer.lr=0.01",
    "backbone.dtype=float64",
    "backbone.dropout=0.3",
    "train.epochs=4",
    "checkpoint.best=last",
    "train.micro_batch_size={micro}",
]
CASES = {
    name: {"overrides": [*FROZEN, *more], "micro": 8}
    for name, more in {
        "off": ["train.replay=false"],
        "memory": ["train.replay=true"],
        "file": ["train.replay=true", "train.replay_memory=0"],
        "auto": [],
    }.items()
}
ON = [text.format(micro=4) for text in [*FROZEN, "train.replay=true"]]


@pytest.fixture(scope="module")
def two(ranks):
    return ranks("runs", cases=CASES)


def notices(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r["message"] for r in map(json.loads, lines) if r["kind"] == "notice"]


@pytest.mark.parametrize("name", ["memory", "file"])
def test_weights_are_those_without_replay(two, name):
    ours, theirs = (load_file(two.folder / n / "model/model.safetensors") for n in (name, "off"))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-11
    assert notices(two.folder / name)[0].startswith("replay is on")


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_bitwise_equal(two, name):
    first, second = two[name]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["metrics"] == second["metrics"]


def test_ranks_decide_together(two):
    (line,) = notices(two.folder / "auto")
    assert line.startswith("replay is ")


@pytest.mark.parametrize("at", [2, 8])
def test_resume_is_bit_equal(ranks, two, at):
    stopped = ranks("interrupted", at=at, codes=[75, 75], overrides=ON)
    again = ranks("resumed", folder=stopped.folder, overrides=ON)
    assert again["fingerprint"] == [result["memory"]["fingerprint"] for result in two.results]
