"""FSDP 2 on two CPU processes: the same weights as one process, the same files as any run."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Sequential",
}
"""What `accelerate launch` makes of a configuration file with `fsdp_version: 2`."""

LONG = [
    "data.examples=219",
    "train.steps=30",
    "checkpoint.best=last",
    "optimizer.lr=0.1",
    "optimizer.use=sgd",
    "optimizer.momentum=0.9",
    "train.micro_batch_size={micro}",
    "backbone.dtype=float64",
]
ADAMW = [
    "optimizer.use=adamw",
    "optimizer.lr=0.01",
    "optimizer.weight_decay=0.1",
    "train.decay_all=true",
]
CASES = {
    "sgd": {"overrides": LONG},
    "accumulated": {"overrides": LONG, "micro": 8},
    "adamw": {"overrides": [*LONG[:3], *ADAMW, *LONG[6:]]},
    "frozen, then thawed": {
        "overrides": [*LONG[:3], *ADAMW, *LONG[6:]],
        "extensions": ['"test/freeze"\nstart = 4\nuntil = 9'],
    },
    "from the start, then thawed": {
        "overrides": [*LONG[:3], *ADAMW, *LONG[6:]],
        "extensions": ['"test/freeze"\nuntil = 7'],
    },
    "best": {"overrides": ["train.epochs=3", "optimizer.lr=0.1"], "extensions": ['"test/views"']},
}


@pytest.fixture(scope="module")
def two(ranks):
    return ranks("sharded", environ=FSDP, cases=CASES)


def test_parameters_are_sharded(two):
    whole = sum(t.numel() for t in load_file(two.folder / "sgd/model/model.safetensors").values())
    for result in two.results:
        assert result["kind"] == "DTensor"
        assert 0.4 * whole < result["elements"] < 0.6 * whole


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_one_process(one, two, name):
    ours, theirs = (load_file(g.folder / name / "model/model.safetensors") for g in (two, one))
    assert ours.keys() == theirs.keys()
    worst = max((ours[key] - theirs[key]).abs().max().item() for key in ours)
    assert worst < (1e-5 if name == "best" else 1e-11)


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_one_process(one, two, name):
    ours, theirs = two[name][0]["metrics"], one[name][0]["metrics"]
    assert two[name][0]["fingerprint"] == two[name][1]["fingerprint"]
    for key, value in theirs.items():
        assert ours[key] == (value if isinstance(value, list) else pytest.approx(value, abs=1e-5))


@pytest.mark.parametrize("name", ["frozen, then thawed", "from the start, then thawed"])
def test_frozen_bytes_stay(two, name):
    frozen = range(8) if name.startswith("from") else range(4, 10)
    digests = {step: digest for step, _, digest in two[name][0]["notes"]}
    assert len({digests[step] for step in frozen}) == 1
    assert len(set(digests.values())) > 20


def test_resume_is_bit_equal_with_state_of_components(ranks):
    overrides = ["backbone.dropout=0.3", "optimizer.use=adamw", "train.epochs=4"]
    extensions = ['"test/drift"']
    whole = ranks(
        "runs", environ=FSDP, cases={"run": {"overrides": overrides, "extensions": extensions}}
    )
    options = {"environ": FSDP, "overrides": overrides, "extensions": extensions}
    stopped = ranks("interrupted", at=5, codes=[75, 75], **options)
    again = ranks("resumed", folder=stopped.folder, **options)
    assert again["fingerprint"] == [each["run"]["fingerprint"] for each in whole.results]


def test_one_process_can_resume_it(ranks, one):
    overrides = [text.format(micro=8) for text in CASES["adamw"]["overrides"]]
    stopped = ranks("interrupted", at=5, codes=[75, 75], environ=FSDP, overrides=overrides)
    again = ranks("resumed", world=1, folder=stopped.folder, overrides=overrides)
    weights = [
        load_file(f / "model/model.safetensors")
        for f in (again.folder / "run", one.folder / "adamw")
    ]
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[1]) < 1e-11


def test_a_model_that_cannot_be_sharded_is_refused(ranks):
    environ = {**FSDP, "FSDP_TRANSFORMER_CLS_TO_WRAP": "Nobody"}
    group = ranks("different", codes=[2, 2], environ=environ, overrides=[["train.steps=2"]] * 2)
    for message in group["message"]:
        assert message.startswith("FSDP cannot shard TinyNet")
    assert not (group.folder / "run").exists()


def test_fp16_is_refused(ranks):
    overrides = ["train.precision=fp16"]
    group = ranks("different", codes=[2, 2], environ=FSDP, overrides=[overrides] * 2)
    assert "found fp16, with FSDP allowed: bf16, fp32" in group["message"][0]


def test_one_process_says_that_there_is_nothing_to_shard(ranks):
    group = ranks("runs", world=1, environ=FSDP, cases={"run": {"overrides": ["train.steps=2"]}})
    lines = (group.folder / "run/metrics.jsonl").read_text().splitlines()
    notices = [r["message"] for r in map(json.loads, lines) if r["kind"] == "notice"]
    assert notices == [
        "the launcher's configuration asks for FSDP, but there is one process: nothing to shard"
    ]
