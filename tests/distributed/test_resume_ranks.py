"""design.md 6.3 with two processes: interrupted anywhere, resumed bit for bit by as many processes."""

from __future__ import annotations

import json

import pytest

NOISY = [
    "backbone.dropout=0.3",
    "optimizer.use=adamw",
    "optimizer.lr=0.01",
    "schedule.use=one-cycle",
    "train.epochs=4",
    "train.micro_batch_size=6",
]
EXTENSIONS = ['"test/drift"', '"early-stopping"\npatience = 50']
NOISE = {"overrides": NOISY, "extensions": EXTENSIONS}


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    skipped = ("seconds", "examples_per")
    return [{k: v for k, v in json.loads(x).items() if not k.startswith(skipped)} for x in lines]


@pytest.fixture(scope="module")
def whole(ranks):
    return ranks("runs", cases={"run": NOISE})


@pytest.mark.parametrize(("at", "before", "after"), [(0, 0, 0), (5, 0, 2), (7, 2, 0)])
def test_resume_is_bit_equal(ranks, whole, at, before, after):
    workers = [[*NOISY, f"train.workers={number}"] for number in (before, after)]
    stopped = ranks(
        "interrupted", at=at, codes=[75, 75], overrides=workers[0], extensions=EXTENSIONS
    )
    assert "before step" in stopped["message"][0]
    again = ranks("resumed", folder=stopped.folder, overrides=workers[1], extensions=EXTENSIONS)
    expected = [result["run"] for result in whole.results]
    assert again["fingerprint"] == [each["fingerprint"] for each in expected]
    # Every rank has got back its own count of its own examples.
    assert again["notes"] == [each["notes"] for each in expected]
    assert again["notes"][0] != again["notes"][1]
    assert losses(again.folder / "run") == losses(whole.folder / "run")


PHASES = [
    "stream.0.use=tiny/texts",
    "stream.0.name=source",
    "stream.0.examples=37",
    "stream.0.batch_size=6",
    "phase.0.name=pretrain",
    "phase.0.steps=4",
    "phase.0.streams.source=1.0",
    "phase.1.name=joint",
    "phase.1.steps=5",
    "phase.1.streams.source=1.0",
    "phase.1.streams.data=0.5",
]


def test_resume_within_a_phase_of_several_streams_is_bit_equal(ranks):
    case = {"overrides": [*NOISY, *PHASES], "extensions": EXTENSIONS}
    whole = ranks("runs", cases={"run": case})
    stopped = ranks("interrupted", at=6, codes=[75, 75], **case)
    again = ranks("resumed", folder=stopped.folder, **case)
    assert again["fingerprint"] == [result["run"]["fingerprint"] for result in whole.results]
    assert losses(again.folder / "run") == losses(whole.folder / "run")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_can_resume(ranks, before, after):
    stopped = ranks("interrupted", world=before, at=5, codes=[75] * before, **NOISE)
    again = ranks("resumed", world=after, folder=stopped.folder, **NOISE)
    assert len(set(again["fingerprint"])) == 1
    notices = [r["message"] for r in losses(again.folder / "run") if r["kind"] == "notice"]
    processes = {1: "1 process", 2: "2 processes"}
    (notice,) = notices
    assert notice.startswith(f"the checkpoint is of {processes[before]}, this run has {after}: ")
    assert notice.endswith("but not bit for bit")
    assert [r["step"] for r in losses(again.folder / "run") if r["kind"] == "train"] == list(
        range(1, 13)
    )


def test_without_noise_another_number_is_equal_up_to_rounding(ranks):
    plain = {"overrides": ["backbone.dtype=float64", "checkpoint.best=last", "train.steps=8"]}
    whole = ranks("runs", world=1, cases={"run": plain})
    stopped = ranks("interrupted", at=3, codes=[75, 75], **plain)
    again = ranks("resumed", world=1, folder=stopped.folder, **plain)
    from safetensors.torch import load_file

    ours, theirs = (load_file(g.folder / "run/model/model.safetensors") for g in (again, whole))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-11
