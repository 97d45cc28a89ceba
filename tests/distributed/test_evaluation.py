"""Only rank 0 writes, and it writes what one process would: every example once, every record once."""

from __future__ import annotations

import json
from collections import Counter

import pytest

CASES = {
    "odd": {"overrides": ["data.validation=9", "data.test=7", "evaluation.batch_size=2"]},
    "lonely": {"overrides": ["data.validation=3", "data.test=3", "evaluation.batch_size=16"]},
    "views": {"overrides": ["data.test=7"], "extensions": ['"test/views"']},
    "probes": {
        "overrides": [
            "data.test=7",
            "evaluation.batch_size=2",
            "probe[0].use=typos",
            "probe[0].severities=[0.3]",
            "probe[0].examples=5",
            "probe[1].use=word-substitution",
            "probe[1].severities=[1.0]",
            "probe[1].examples=5",
        ]
    },
    "normed": {"overrides": ["data.test=6"], "extensions": ['"test/normed"']},
}
for case in CASES.values():
    case["overrides"] += ["backbone.dtype=float64", "train.steps=4", "evaluation.every_steps=3"]


def lines(group, name, file):
    return [json.loads(line) for line in (group.folder / name / file).read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_every_record_is_written_once(two, name):
    seen = Counter(
        (r["kind"], r.get("of"), r.get("split"), r.get("view"), r.get("step"), r.get("message"))
        for r in lines(two, name, "metrics.jsonl")
    )
    assert max(seen.values()) == 1
    assert seen[("evaluation", None, "validation", "", 3, None)] == 1


@pytest.mark.parametrize("name", ["odd", "lonely", "views", "probes"])
def test_metrics_are_those_of_one_process(one, two, name):
    def evaluations(group):
        records = [r for r in lines(group, name, "metrics.jsonl") if r["kind"] == "evaluation"]
        return [{k: v for k, v in r.items() if k != "seconds"} for r in records]

    ours, theirs = evaluations(two), evaluations(one)
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            number = not isinstance(value, (str, list))
            same = pytest.approx(value, abs=1e-11, nan_ok=True) if number else value
            assert mine[key] == same, key


@pytest.mark.parametrize("name", ["odd", "lonely", "views", "probes"])
def test_predictions_are_those_of_one_process(one, two, name):
    ours, theirs = (lines(group, name, "predictions/test.jsonl") for group in (two, one))
    assert len(ours) == len(theirs) == (3 if name == "lonely" else 7)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine["row"], mine["prediction"]) == (other["row"], other["prediction"])
        assert mine["probabilities"] == pytest.approx(other["probabilities"], abs=1e-11)


def test_probes_report_what_they_do_in_one_process(one, two):
    ours, theirs = (
        json.loads((group.folder / "probes" / "report.json").read_text()) for group in (two, one)
    )
    assert list(ours["probes"]) == ["typos", "word-substitution"]
    assert ours["probes"] == theirs["probes"]
    mine, others = (
        [section for section in report["sections"] if section["id"] in report["probes"]]
        for report in (ours, theirs)
    )
    assert len(mine) == 2
    assert mine == others


def test_every_example_is_seen_by_one_rank(two):
    seen = [set(notes[0]) for notes in (each["notes"] for each in two["views"])]
    assert sorted([*seen[0], *seen[1]]) == list(range(7))


def test_ranks_have_equal_metrics_and_buffers(two):
    """Statistics of batch norm follow each rank's own examples; rank 0's hold for all."""
    for name in CASES:
        first, second = two[name]
        assert first["metrics"] == second["metrics"]
        assert first["fingerprint"] == second["fingerprint"]
    first, second = two["normed"]
    assert first["notes"] == second["notes"]


def test_nothing_but_the_run_is_left(two):
    folder = two.folder / "odd"
    assert {p.name for p in folder.iterdir()} == {
        "recipe.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "predictions",
        "report.json",
    }
    run = json.loads((folder / "run.json").read_text())
    assert (run["processes"], run["status"], run["exit_code"]) == (2, "done", 0)
