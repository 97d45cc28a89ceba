"""Runs whose heads train together are what they are by themselves, up to rounding, however each of them ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_engine import verbs
from sft_engine.errors import Interrupted
from sft_engine.study import StudySettings

FROZEN = [
    "freezing.use=tiny/trunk",
    'freezing.trains=["head.", "norm.", "blocks.1."]',
    "train.replay=true",
    "train.epochs=3",
    "train.log_every=1",
    "data.validation=16",
    "evaluation.page=false",
    "evaluation.train_sample=0",
]
ALONE = [*FROZEN, "train.replay=false"]


def stability(output, overrides, **settings):
    given = {"seeds": 4, "vary": ("order", "noise"), "executor": "inline", **settings}
    settings = StudySettings(**given)
    return verbs.stability("tiny.toml", output=output, overrides=overrides, settings=settings)


def joint_steps(study):
    """Return how many micro-batches of each run were passed with those of others."""
    folders = sorted(Path(study, "runs").iterdir())
    found = (json.loads(Path(each, "aftermath.json").read_text()) for each in folders)
    return [each["trunk_passes"].get("joint_steps", 0) for each in found]


def steps_of(folder):
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def predictions(folder):
    lines = Path(folder, "predictions", "test.jsonl").read_text().splitlines()
    return [json.loads(line)["probabilities"]["a"] for line in lines]


def require_alike(one, other):
    """Compare every recorded step, and every prediction, of the runs of two studies."""
    names = sorted(path.name for path in Path(one, "runs").iterdir())
    assert names == sorted(path.name for path in Path(other, "runs").iterdir())
    for name in names:
        ours, theirs = (steps_of(Path(each, "runs", name)) for each in (one, other))
        assert [each["step"] for each in ours] == [each["step"] for each in theirs]
        for key in ("loss", "grad_norm"):
            expected = pytest.approx([each[key] for each in theirs], rel=1e-3, abs=1e-5)
            assert [each[key] for each in ours] == expected
        ours, theirs = (predictions(Path(each, "runs", name)) for each in (one, other))
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.fixture
def alone(folder):
    """The same study, each run by itself and without replay."""
    assert stability("alone", ALONE).path == "separate runs"
    return Path("alone")


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ([], {}),
        (["train.clip_norm=0.05", "train.batch_size=8", "data.longest=3"], {}),
        (["train.micro_batch_size=4"], {}),
        ([], {"data": 2, "seeds": 2, "vary": ("order", "noise", "data")}),
    ],
    ids=["dropout", "clipped", "accumulated", "resampled"],
)
def test_heads_trained_together_are_those_trained_alone(folder, more, settings):
    found = stability("s", [*FROZEN, *more], **settings)
    stability("alone", [*ALONE, *more], **settings)
    steps = joint_steps("s")
    assert found.path.endswith("the heads of 3 runs were trained together")
    assert steps[0] == 0
    assert all(each > 0 for each in steps[1:])
    require_alike("s", "alone")


@pytest.mark.slow
def test_two_processes_train_their_share_each(alone):
    stability("s", FROZEN, executor="local", jobs=2, seeds=4)
    require_alike("s", "alone")


def test_a_run_that_diverges_leaves_the_others(folder, monkeypatch):
    monkeypatch.setenv("STUDY_BAD", "data-00-seed-02 nan")
    found = stability("s", FROZEN)
    assert [cell["state"] for cell in found.cells] == ["complete", "complete", "failed", "complete"]
    monkeypatch.delenv("STUDY_BAD")
    stability("alone", ALONE)
    for name in ("data-00-seed-01", "data-00-seed-03"):
        ours, theirs = (predictions(Path(each, "runs", name)) for each in ("s", "alone"))
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["freezing.listens=true"], "there is a hook on `head`"),
        # What is kept here are texts of uneven length, and no two runs draw the same in a step.
        (["train.batch_size=8"], "the shapes of their batches differ"),
    ],
)
def test_what_cannot_be_put_together_is_trained_one_after_the_other(folder, more, reason):
    found = stability("s", [*FROZEN, *more])
    assert found.path.endswith(f"heads were trained one run after the other, because {reason}")
    assert joint_steps("s") == [0, 0, 0, 0]


def test_without_a_replayed_trunk_runs_are_separate(folder):
    more = ['freezing.trains=["head.", "embeddings."]', "train.replay=auto"]
    assert stability("s", [*FROZEN, *more], seeds=3).path == "separate runs"


def test_a_stopped_group_goes_on(alone, monkeypatch):
    monkeypatch.setenv("STUDY_END", "data-00-seed-02 3 stop")
    with pytest.raises(Interrupted):
        stability("s", FROZEN)
    monkeypatch.delenv("STUDY_END")
    begun = sorted(path.parent.name for path in Path("s/runs").glob("*/checkpoints"))
    assert begun == ["data-00-seed-01", "data-00-seed-02", "data-00-seed-03"]
    done = Path("s/runs/data-00-seed-00/report.json").stat().st_mtime_ns
    stability("s", FROZEN)
    assert Path("s/runs/data-00-seed-00/report.json").stat().st_mtime_ns == done
    require_alike("s", "alone")


@pytest.mark.slow
def test_a_killed_group_begins_anew(alone, monkeypatch):
    monkeypatch.setenv("STUDY_END", "data-00-seed-02 3 self")
    with pytest.raises(Exception, match="was killed by signal 9"):
        stability("s", FROZEN, executor="local", jobs=1)
    monkeypatch.delenv("STUDY_END")
    stability("s", FROZEN, executor="local", jobs=1)
    assert joint_steps("s")[1:] != [0, 0, 0]
    require_alike("s", "alone")
