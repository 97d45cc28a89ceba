"""design.md 6.2: one process or several, however the window is cut: the same weights."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

LONG = [
    "data.examples=219",
    "train.steps=30",
    "train.clip_norm=1.0",
    "checkpoint.best=last",
    "train.micro_batch_size={micro}",
]
"""203 training examples, 13 windows an epoch, the last one of 11: one slice of it is empty."""

SGD = ["optimizer.use=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9"]
ADAMW = ["optimizer.use=adamw", "optimizer.lr=0.01"]
DOUBLE = ["backbone.dtype=float64"]
PHASES = [
    "stream.0.use=tiny/texts",
    "stream.0.name=source",
    "stream.0.examples=37",
    "stream.0.seed=3",
    "stream.0.batch_size=6",
    "phase.0.name=pretrain",
    "phase.0.steps=9",
    "phase.0.streams.source=1.0",
    "phase.1.name=joint",
    "phase.1.steps=16",
    "phase.1.streams.source=2.0",
    "phase.1.streams.data=0.5",
    "phase.1.lr=0.003",
    "phase.2.name=last",
    "phase.2.steps=5",
]
"""The last window of `source` has one example, of which the second rank gets none."""

CASES = {
    "sgd": {"overrides": [*LONG, *SGD, *DOUBLE]},
    "adamw": {"overrides": [*LONG, *ADAMW, *DOUBLE]},
    "weighted": {
        "overrides": [
            *LONG,
            *SGD,
            *DOUBLE,
            "task.class_weights=balanced",
            "task.label_smoothing=0.2",
        ]
    },
    "terms": {"overrides": [*LONG, *ADAMW, *DOUBLE], "extensions": ['"test/terms"']},
    "phases": {"overrides": [*LONG, *ADAMW, *DOUBLE, *PHASES], "extensions": ['"test/terms"']},
    "float32": {"overrides": [*LONG, *SGD]},
}
SPLITS = {
    f"{name}-{micro}": {**case, "micro": micro} for name, case in CASES.items() for micro in (16, 8)
}
"""Two processes take 2x8 and 2x4 accumulated twice; one takes 1x16 and 1x8 accumulated twice."""


@pytest.fixture(scope="module")
def one(ranks):
    return ranks("runs", world=1, cases=SPLITS)


@pytest.fixture(scope="module")
def two(ranks):
    return ranks("runs", cases=SPLITS)


def weights(group, name):
    return load_file(group.folder / name / "model" / "model.safetensors")


def records(group, name):
    lines = (group.folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def difference(group, other, name):
    ours, theirs = weights(group, name), weights(other, name)
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours)


@pytest.mark.parametrize("name", SPLITS)
def test_weights_are_those_of_one_process(one, two, name):
    reference = f"{name.split('-')[0]}-16"
    ours, theirs = weights(two, name), weights(one, reference)
    worst = max((ours[key] - theirs[key]).abs().max().item() for key in ours)
    assert worst < (1e-6 if name.startswith("float32") else 1e-11)


@pytest.mark.parametrize("name", SPLITS)
def test_the_recorded_curve_is_that_of_one_process(one, two, name):
    def curve(group):
        return [r for r in records(group, name) if r["kind"] == "train"]

    ours, theirs = curve(two), curve(one)
    assert [r["step"] for r in ours] == list(range(1, 31))
    rel = 1e-5 if name.startswith("float32") else 1e-11
    keys = {key for r in theirs for key in r if key.startswith("loss")} | {
        "grad_norm",
        "lr",
        "epoch",
    }
    for mine, other in zip(ours, theirs, strict=True):
        for key in keys & other.keys():
            assert mine[key] == pytest.approx(other[key], rel=rel, abs=rel), (mine["step"], key)


@pytest.mark.parametrize("name", SPLITS)
def test_ranks_are_bitwise_equal(two, name):
    first, second = two[name]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["metrics"] == second["metrics"]


def test_each_term_counts_once(two):
    train = [r for r in records(two, "terms-8") if r["kind"] == "train"]
    assert all(r["loss/one"] == pytest.approx(1.0, rel=1e-12) for r in train)
    assert {"loss/decay", "loss/calm"} < train[0].keys()
    # The term of example 0 comes up in one micro-batch an epoch, on one rank.
    with_it = [r["step"] for r in train if "loss/rare" in r]
    assert len(with_it) == 30 // 13 + bool(with_it[0] <= 30 % 13)
    parts = [[v for k, v in r.items() if k.startswith("loss/")] for r in train]
    assert [sum(each) for each in parts] == pytest.approx([r["loss"] for r in train], rel=1e-12)


def test_a_mean_of_means_fails_this_test(ranks, one):
    """The usual mistake, planted: ragged windows count too much."""
    name = "sgd-8"
    planted = ranks("planted_mean_of_means", cases={name: SPLITS[name]})
    assert difference(planted, one, name) > 1e-4
