"""With a frozen trunk the runs of a study share its activations, and are what they are by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_engine import verbs
from sft_engine.replay import liveness
from sft_engine.study import StudySettings

FROZEN = [
    "freezing.use=tiny/trunk",
    "train.replay=true",
    "data.validation=16",
    "evaluation.train_sample=0",
]
SETTINGS = {"data": 2, "seeds": 2, "vary": ("order", "noise", "data"), "executor": "inline"}


def stability(output, overrides, **settings):
    return verbs.stability(
        "tiny.toml",
        output=output,
        overrides=overrides,
        settings=StudySettings(**{**SETTINGS, **settings}),
    )


def predictions(folder):
    lines = Path(folder, "predictions", "test.jsonl").read_text().splitlines()
    return [json.loads(line)["probabilities"]["a"] for line in lines]


def rows_seen(name):
    """Return which rows a run was trained on, each once."""
    plan = verbs.check(f"s/runs/{name}/recipe.toml")
    from sft_engine.assemble import read_rows

    return set(read_rows(plan, "train")[0]["row"])


def test_an_example_goes_through_the_trunk_once(folder):
    found = stability("s", FROZEN)
    assert found.path.startswith("shared trunk: frozen layers ran for ")
    passes = [
        json.loads(Path(f"s/runs/{cell['name']}/aftermath.json").read_text())["trunk_passes"]
        for cell in found.cells
    ]
    first, second = (rows_seen(f"data-0{i}-seed-00") for i in range(2))
    held_out = 16 + 16  # validation and test
    # A bootstrap's repeats are met within a batch at times, and then computed together.
    assert len(first) + held_out <= passes[0]["computed"] <= len(first) + held_out + 12
    assert sum(each["computed"] for each in passes[1:]) <= len(second - first) + 24
    assert all(each["reused"] >= held_out for each in passes[1:])
    assert "shared trunk" in json.loads(Path("s/report.json").read_text())["sections"][0]["summary"]


def test_runs_are_what_they_are_by_themselves(folder):
    found = stability("s", FROZEN)
    alone = stability("alone", [*FROZEN[:1], "train.replay=false", *FROZEN[2:]])
    assert alone.path == "separate runs"
    for cell in found.cells:
        one, other = (predictions(f"{study}/runs/{cell['name']}") for study in ("s", "alone"))
        assert one == pytest.approx(other, abs=1e-5)


def test_another_trunk_is_not_taken_over(folder):
    """The tiny network begins with random weights: with another `init` it has another trunk."""
    found = stability("s", FROZEN, data=1, vary=("init",))
    assert found.path == "separate runs"


@pytest.mark.parametrize("holds", [True, False])
def test_what_can_be_replayed_is_looked_for_once(folder, monkeypatch, holds):
    """And anew where a quick look finds that it is not so for another run."""
    from sft_engine.replay import replay
    from sft_engine.replay.trace import Refused

    searched = []
    monkeypatch.setattr(
        replay, "find_cut", lambda *args: searched.append(1) or liveness.find_cut(*args)
    )
    if not holds:

        def refuse(*_):
            raise Refused("another model")

        monkeypatch.setattr(replay, "verify_again", refuse)
    found = stability("s", FROZEN, data=1)
    assert found.path.startswith("shared trunk")
    assert len(searched) == (1 if holds else len(found.cells))
