"""Ranks that do not run the same stop with a message; what one asks for, all do."""

from __future__ import annotations

import json

import pytest


def test_different_recipes_stop_all_ranks(ranks):
    group = ranks("different", codes=[2, 2], overrides=[["train.epochs=2"], ["train.epochs=3"]])
    for result in group.results:
        assert result["error"] == "RecipeError"
        assert "rank 0 has epochs = 2" in result["message"]
        assert "rank 1 has epochs = 3" in result["message"]
    assert not (group.folder / "run").exists()


def test_different_plugin_versions_stop_all_ranks(ranks):
    group = ranks("different_plugins", codes=[2, 2], versions=["1.0", "1.1"])
    for result in group.results:
        assert result["error"] == "RecipeError"
        assert "tiny/text of sft-acme 1.0" in result["message"]
        assert "tiny/text of sft-acme 1.1" in result["message"]
        assert "install the same versions" in result["message"]
    assert not (group.folder / "run").exists()


def test_different_data_stops_all_ranks(ranks):
    overrides = ["data.use=test/texts", "data.same=false"]
    group = ranks("different", codes=[3, 3], overrides=[overrides, overrides])
    for result in group.results:
        assert result["message"].startswith(
            "rank 0 and rank 1 read different rows of the train split"
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_data_that_one_rank_cannot_read_stops_all_ranks(ranks, rank):
    overrides = ["data.use=test/texts", f"data.fails={rank}"]
    group = ranks("different", codes=[3, 3], overrides=[overrides, overrides])
    assert group["message"] == ["the disk of this machine is gone"] * 2


@pytest.fixture(scope="module")
def asking(ranks):
    def case(*options):
        lines = '"test/asks"\n' + "\n".join(options)
        return {"overrides": ["evaluation.every_steps=4", "train.steps=8"], "extensions": [lines]}

    cases = {
        "stop": case('what = "stop"'),
        "stop in an evaluation": case('what = "stop"', 'hook = "metrics"', "at = 4"),
        "save": case('what = "save"'),
        "evaluate": case('what = "evaluate"'),
        "skip": case('what = "skip"'),
    }
    return ranks("runs", cases=cases)


def records(group, name, kind):
    lines = (group.folder / name / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.mark.parametrize(("name", "steps"), [("stop", 4), ("stop in an evaluation", 4)])
def test_one_rank_can_stop_all(asking, name, steps):
    assert [each["reason"] for each in asking[name]] == ["rank 1 asked"] * 2
    assert len(records(asking, name, "train")) == steps


def test_one_rank_can_have_a_checkpoint_saved(asking):
    # every_epochs would save at 3 and 6 and keeps one: the one that was asked for lay between.
    assert [each["reason"] for each in asking["save"]] == ["all steps done"] * 2
    first, second = asking["save"]
    assert first["fingerprint"] == second["fingerprint"]


def test_one_rank_can_have_an_evaluation_made(asking):
    steps = [r["step"] for r in records(asking, "evaluate", "evaluation") if r["split"] != "test"]
    assert steps == [4, 8]


def test_the_strictest_verdict_of_all_ranks_holds(asking):
    (verdict,) = records(asking, "skip", "verdict")
    assert (verdict["step"], verdict["action"], verdict["reason"]) == (3, "skip", "rank 1 asked")
    assert len(verdict["examples"]) == 16
    first, second = asking["skip"]
    assert first["fingerprint"] == second["fingerprint"]


def test_metrics_of_components_are_those_of_rank_0(asking):
    for evaluation in records(asking, "evaluate", "evaluation"):
        assert evaluation["mine"] == 0.0
    assert [each["metrics"]["mine"] for each in asking["evaluate"]] == [0.0, 0.0]


def test_a_parameter_without_gradient_is_found(ranks):
    """DDP alone would leave the other gradients unsynchronized, and stop at the next step."""
    case = {
        "overrides": [
            "backbone.dtype=float64",
            "checkpoint.best=last",
            "train.micro_batch_size={micro}",
        ],
        "extensions": ['"test/idle"'],
        "micro": 8,
    }
    one = ranks("runs", world=1, cases={"run": case})
    two = ranks("runs", cases={"run": case})
    assert len({each["fingerprint"] for each in two["run"]}) == 1
    (notice,) = records(two, "run", "notice")
    assert "no gradient reaches norm.idle" in notice["message"]
    losses = [[r["loss"] for r in records(g, "run", "train")] for g in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-11)
