"""design.md 6.3: an interrupted run ends bit-equal to the uninterrupted one."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sft_engine import CheckpointError, Interrupted
from sft_engine.checkpoint import Keeper
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_engine.training import train

NOISY = [
    "backbone.dropout=0.3",
    "optimizer.use=adamw",
    "optimizer.lr=0.01",
    "schedule.use=one-cycle",
    "train.epochs=4",
    "train.micro_batch_size=6",
]
COMPONENTS = {("extension", "test/drift"): "victims:Drift"}
TEXT = (
    TINY
    + '[[extension]]\nuse = "test/drift"\n[[extension]]\nuse = "early-stopping"\npatience = 50\n'
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run_recipe(folder, TEXT, NOISY, COMPONENTS)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in r.items() if not k.startswith(("seconds", "examples_per"))}
        for r in records
    ]


@pytest.mark.parametrize("at", [0, 1, 3, 5, 7, 11])
def test_resume_is_bit_equal(tmp_path, uninterrupted, at):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"before step {at}"):
        run_recipe(folder, TEXT, NOISY, COMPONENTS, stop_after=at)
    assert not (folder / "model").exists()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(at)  # a fresh process has other ones
    resumed = train(plan_recipe(TEXT, NOISY, COMPONENTS), folder, resume=True)
    assert resumed.fingerprint == uninterrupted.fingerprint
    assert losses(folder) == losses(uninterrupted.folder)
    assert resumed.best == uninterrupted.best
    assert resumed.metrics == uninterrupted.metrics
    one, other = (load_file(f / "model/model.safetensors") for f in (folder, uninterrupted.folder))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("at", [3, 6])
def test_a_record_is_of_all_its_steps_though_the_run_was_interrupted_within(tmp_path, at):
    sparse = [*NOISY, "train.log_every=5"]
    whole = run_recipe(tmp_path / "whole", TEXT, sparse, COMPONENTS)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, sparse, COMPONENTS, stop_after=at)
    train(plan_recipe(TEXT, sparse, COMPONENTS), folder, resume=True)
    assert losses(folder) == losses(whole.folder)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_resume_does_not_depend_on_workers(tmp_path, uninterrupted, before, after):
    folder = tmp_path / "run"
    workers = [*NOISY, f"train.workers={before}"]
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, workers, COMPONENTS, stop_after=5)
    plan = plan_recipe(TEXT, [*NOISY, f"train.workers={after}"], COMPONENTS)
    assert train(plan, folder, resume=True).fingerprint == uninterrupted.fingerprint


def test_resume_twice(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, NOISY, COMPONENTS, stop_after=2)
    plan = plan_recipe(TEXT, NOISY, COMPONENTS)
    with pytest.raises(Interrupted):
        train(plan, folder, resume=True, stop_after=9)
    assert train(plan, folder, resume=True).fingerprint == uninterrupted.fingerprint


def test_a_damaged_checkpoint_is_passed_over(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    more = [*NOISY, "checkpoint.keep=9", "checkpoint.every_steps=2"]
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, more, COMPONENTS, stop_after=7)
    steps = Keeper(folder / "checkpoints").steps()
    assert steps[-2:] == [6, 7]
    for step, damage in ((7, flip), (6, truncate)):
        damage(Keeper(folder / "checkpoints").path(step) / "training.safetensors")
    plan = plan_recipe(TEXT, more, COMPONENTS)
    assert train(plan, folder, resume=True).fingerprint == uninterrupted.fingerprint
    notices = [r for r in losses(folder) if r["kind"] == "notice"]
    assert len(notices) == 2
    assert "size or checksum differ" in notices[0]["message"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def test_no_complete_checkpoint_is_an_error(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, NOISY, COMPONENTS, stop_after=1)
    for path in (folder / "checkpoints").iterdir():
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="no complete checkpoint in"):
        train(plan_recipe(TEXT, NOISY, COMPONENTS), folder, resume=True)


def test_missing_and_unknown_component_state_are_errors(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, NOISY, COMPONENTS, stop_after=1)
    without = TINY + '[[extension]]\nuse = "early-stopping"\n'
    with pytest.raises(CheckpointError, match="the checkpoint holds the state of"):
        train(plan_recipe(without, NOISY, COMPONENTS), folder, resume=True)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(folder, TEXT, NOISY, COMPONENTS, stop_after=4)
    files = sorted(p for p in (folder / "checkpoints").rglob("*") if p.is_file())
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            load_file(path)


def test_older_checkpoints_are_deleted_but_the_best_is_kept(tmp_path):
    folder = tmp_path / "run"
    outcome = run_recipe(folder, TEXT, [*NOISY, "checkpoint.keep=2"], COMPONENTS)
    steps = Keeper(folder / "checkpoints").steps()
    assert set(steps) == {9, 12, outcome.best["step"]}


def test_the_best_weights_are_the_result(tmp_path):
    folder = tmp_path / "run"
    # The rate grows until the model is worse than at its best.
    wild = ["optimizer.use=sgd", "optimizer.lr=3", "schedule.use=constant", "train.epochs=6"]
    outcome = run_recipe(folder, TINY, [*wild, "checkpoint.keep=20", "train.clip_norm=0"])
    best = outcome.best["step"]
    values = {
        r["step"]: r["accuracy"]
        for r in losses(folder)
        if r["kind"] == "evaluation" and r["split"] == "validation"
    }
    assert outcome.best["value"] == max(values.values()) == values[best]
    saved = Keeper(folder / "checkpoints").read(best)["model"]
    final = load_file(folder / "model/model.safetensors")
    assert all(torch.equal(saved[name], final[name]) for name in final)


def test_a_run_that_was_killed_after_the_last_step_is_finished(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    run_recipe(folder, TEXT, NOISY, COMPONENTS)
    shutil.rmtree(folder / "model")
    (folder / "report.json").unlink()
    resumed = train(plan_recipe(TEXT, NOISY, COMPONENTS), folder, resume=True)
    assert resumed.fingerprint == uninterrupted.fingerprint
    assert (folder / "model" / "model.safetensors").exists()
