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
PHASES = [
    "stream.0.name=source",
    "stream.0.use=tiny/texts",
    "stream.0.examples=21",
    "stream.0.seed=5",
    "phase.0.name=alone",
    "phase.0.epochs=2",
    "phase.1.name=both",
    "phase.1.steps=6",
    "phase.1.streams.source=1.0",
    "phase.1.streams.data=0.5",
]
CASES = {
    name: {"overrides": [*FROZEN, *more], "micro": 8}
    for name, more in {
        "off": ["train.replay=false"],
        "memory": ["train.replay=true"],
        "file": ["train.replay=true", "train.replay_memory=0"],
        "phases off": ["train.replay=false", *PHASES],
        "phases": ["train.replay=true", *PHASES],
        "auto": [],
        # A batch holds examples of before on one rank and not on the other: both decide together.
        "drawn": ["data.resample=bootstrap"],
    }.items()
}
ON = [text.format(micro=4) for text in [*FROZEN, "train.replay=true"]]


def notices(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r["message"] for r in map(json.loads, lines) if r["kind"] == "notice"]


@pytest.mark.parametrize(
    ("name", "off"), [("memory", "off"), ("file", "off"), ("phases", "phases off")]
)
def test_weights_are_those_without_replay(two, name, off):
    ours, theirs = (load_file(two.folder / n / "model/model.safetensors") for n in (name, off))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-11
    assert notices(two.folder / name)[0].startswith("replay is on")


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_bitwise_equal(two, name):
    first, second = two[name]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize("name", ["auto", "drawn"])
def test_ranks_decide_together(two, name):
    (line,) = notices(two.folder / name)
    assert "a training example is the frozen part" in line


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_resume_is_bit_equal(ranks, two, at):
    stopped = ranks("interrupted", at=at, codes=[75, 75], overrides=ON)
    again = ranks("resumed", folder=stopped.folder, overrides=ON)
    assert again["fingerprint"] == [result["memory"]["fingerprint"] for result in two.results]
