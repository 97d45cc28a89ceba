"""Adapters of sft-freezing on two processes: the weights of one process, and the same files."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

LONG = [
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
METHODS = {
    "lora": ["use=lora", "rank=2", "bias=lora_only"],
    "dora": ["use=lora", "rank=2", "dora=true"],
    "adalora": ["use=adalora", "rank=4", "target=2", "every=2"],
    "ia3": ["use=ia3"],
    "vera": ["use=peft", "method=vera", "options.r=4"],
    "loha": ["use=peft", "method=loha", "options.r=2"],
}
CASES = {
    name: {"overrides": [*LONG, *(f"freezing.{each}" for each in options)], "micro": 8}
    for name, options in METHODS.items()
}
SHARDED = [name for name in METHODS if name != "adalora"]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Sequential",
}
FILES = ("model/model.safetensors", "model/adapter/adapter_model.safetensors")


def assert_same(group, other, name):
    for file in FILES:
        ours, theirs = (load_file(g.folder / name / file) for g in (group, other))
        assert ours.keys() == theirs.keys()
        assert max((ours[k] - theirs[k]).abs().max().item() for k in ours) < 1e-11, file


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_those_of_one_process(one, two, name):
    assert_same(two, one, name)
    first, second = two[name]
    assert first["fingerprint"] == second["fingerprint"]


def test_a_resumed_run_ends_bit_equal(ranks, two):
    overrides = [text.format(micro=4) for text in CASES["lora"]["overrides"]]
    stopped = ranks("interrupted", at=7, codes=[75, 75], overrides=overrides)
    again = ranks("resumed", folder=stopped.folder, overrides=overrides)
    assert set(again["fingerprint"]) == {two["lora"][0]["fingerprint"]}


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_are_those_of_one_process(sharded, one, name):
    assert {result["kind"] for result in sharded.results} == {"DTensor"}
    assert_same(sharded, one, name)


@pytest.fixture(scope="module")
def sharded(ranks):
    return ranks("sharded", environ=FSDP, cases={name: CASES[name] for name in SHARDED})


def test_ranks_that_are_compared_over_layers_are_refused_where_these_are_spread(ranks):
    overrides = ["train.steps=8", "freezing.use=adalora"]
    group = ranks("different", codes=[2, 2], environ=FSDP, overrides=[overrides] * 2)
    for message in group["message"]:
        assert message.startswith("`freezing`: adalora compares weights of all layers, which FSDP")
    assert not (group.folder / "run").exists()
