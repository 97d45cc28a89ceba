"""Replay in whole runs of the transformers backbone, proved by the command that proves resume."""

from __future__ import annotations

import json

import pytest

import sft_engine
from sft_engine.tracing import trace

RECIPE = """
[task]
use = "text-classification"
[data]
use = "csv"
path = "{data}"
validation = 16
test = 16
[backbone]
use = "transformers"
name = "{model}"
[train]
epochs = 3
batch_size = 8
device = "cpu"
precision = "fp32"
log_every = 1
replay = true
[optimizer]
lr = 5e-3
[freezing]
use = "frozen"
"""


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.mark.parametrize(
    ("freezing", "kept"),
    [
        ('freezing.keep="head"', "`bert"),
        ('freezing.keep=["head", "block.1"]', "`bert.encoder.layer.0`"),
    ],
)
def test_bert_trains_the_same(recipe, tmp_path, freezing, kept):
    sft_engine.run(recipe(freezing), output=tmp_path / "on")
    sft_engine.run(recipe(freezing, "train.replay=false"), output=tmp_path / "off")
    (line,) = [r["message"] for r in records(tmp_path / "on", "notice")]
    assert line.startswith(f"replay is on: kept of each example: {kept}")
    on, off = ([r["loss"] for r in records(tmp_path / n, "train")] for n in ("on", "off"))
    assert on == pytest.approx(off, rel=1e-4)
    on, off = ([r["accuracy"] for r in records(tmp_path / n, "evaluation")] for n in ("on", "off"))
    assert on == off


def test_recomputed_activations_are_the_same(recipe, tmp_path):
    """Checkpointed blocks run a second time in the backward pass, with stubs in place."""
    overrides = ['freezing.keep=["head", "block.1"]', "train.gradient_checkpointing=true"]
    sft_engine.run(recipe(*overrides), output=tmp_path / "on")
    sft_engine.run(recipe(*overrides, "train.replay=false"), output=tmp_path / "off")
    on, off = ([r["loss"] for r in records(tmp_path / n, "train")] for n in ("on", "off"))
    assert on == pytest.approx(off, rel=1e-5)


PHASES = """
[[stream]]
name = "more"
use = "csv"
path = "{data}"
subset = 40
[[phase]]
name = "head"
[[phase]]
name = "both"
streams = {{more = 1.0, data = 0.5}}
"""


def test_resume_is_proved_with_replay_and_phases(recipe, monkeypatch):
    """Four epochs of the second stream in the second phase: what is kept is met again."""
    monkeypatch.setattr(__name__ + ".RECIPE", RECIPE + PHASES)
    proof = sft_engine.verify_resume(recipe(), steps=40, interrupt_at=33)
    assert proof.equal


def test_hooks_are_traced_with_replay_and_phases(recipe, monkeypatch):
    monkeypatch.setattr(__name__ + ".RECIPE", RECIPE + PHASES)
    traced = trace(recipe(), steps=4)
    assert traced.steps == 4
    changed = next(h.changes for h in traced.hooks if h.hook == "sft_phase_start")
    assert next(iter(changed)).startswith("requires_grad: ")
