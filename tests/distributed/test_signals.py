"""A signal to one rank stops all of them at the same step; what is resumed is bit-equal."""

from __future__ import annotations

import json

import launchers
import pytest

from sft_engine.checkpoint import Keeper

NOISY = ["backbone.dropout=0.3", "train.epochs=4", "train.micro_batch_size=4"]


@pytest.fixture(scope="module")
def whole(ranks):
    return ranks("runs", cases={"run": {"overrides": NOISY}})


@pytest.mark.parametrize(
    ("rank", "workers", "signal"), [(1, 0, "SIGTERM"), (0, 2, "SIGTERM"), (1, 2, "SIGINT")]
)
def test_a_signal_to_one_rank_stops_all(ranks, whole, rank, workers, signal):
    kill = f'"test/kill"\nrank = {rank}\nsignal = "{signal}"'
    overrides = [*NOISY, f"train.workers={workers}"]
    group = ranks("interrupted", at=-1, overrides=overrides, extensions=[kill], codes=[75, 75])
    assert group["error"] == ["Interrupted"] * 2
    messages = {
        rank: f"interrupted by {signal} before step 5; a checkpoint is written",
        1 - rank: "interrupted by another process before step 5; a checkpoint is written",
    }
    assert group["message"] == [messages[0], messages[1]]
    folder = group.folder / "run"
    assert Keeper(folder / "checkpoints").steps()[-1] == 5
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["exit_code"]) == ("interrupted", 75)
    again = ranks("resumed", folder=group.folder, overrides=overrides, extensions=[kill])
    expected = [each["run"]["fingerprint"] for each in whole.results]
    assert again["fingerprint"] == expected


@pytest.mark.parametrize(
    ("to", "rank", "workers"),
    [
        ("group parent", -1, 2),  # as Slurm does: everybody is told, and torchrun tells them again
        pytest.param("parent", 0, 0, marks=pytest.mark.slow),
        pytest.param("parent", 1, 2, marks=pytest.mark.slow),
        pytest.param("group", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_under_torchrun(ranks, tmp_path, to, rank, workers):
    # A signal to torchrun alone takes a while to arrive.
    steps = 300 if to == "parent" else 40
    long = [*NOISY, f"train.steps={steps}", "train.log_every=50"]
    long_run = ranks("runs", cases={"run": {"overrides": long}})
    kill = f'"test/kill"\nto = "{to}"\nrank = {rank}\nslowly = 0.05'
    recipe = launchers.recipe(tmp_path, kill)
    overrides = [*long, f"train.workers={workers}"]
    ended = launchers.torchrun(tmp_path, "run", recipe, overrides, "--output", tmp_path / "run")
    # torchrun returns 1 whatever its processes return; the run folder knows better.
    assert ended.code != 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["processes"] == 2
    assert (run["status"], run["exit_code"]) == ("interrupted", 75), ended.text
    step = Keeper(tmp_path / "run" / "checkpoints").steps()[-1]
    assert f"before step {step}; a checkpoint is written" in ended.text
    assert 5 <= step < steps
    again = ranks(
        "resumed", folder=tmp_path, overrides=overrides, extensions=[kill.partition("slowly")[0]]
    )
    assert again["fingerprint"] == [each["run"]["fingerprint"] for each in long_run.results]
