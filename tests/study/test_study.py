"""Studies of a tiny model in this process: what they leave, what they show, and the mistakes of a user."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from sft_engine import RecipeError, verbs
from sft_engine.study import StudySettings

RECIPE = Path(__file__).with_name("tiny.toml").read_text()
NAMES = [f"data-0{d}-seed-0{s}" for d, s in itertools.product(range(2), range(2))]


def stability(output="s", recipe="tiny.toml", overrides=(), **settings):
    settings = {"data": 2, "seeds": 2, "executor": "inline", **settings}
    return verbs.stability(
        recipe, output=output, overrides=overrides, settings=StudySettings(**settings)
    )


def read(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _installed):
    """A study that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(RECIPE)
    return stability(folder / "s", recipe=folder / "tiny.toml")


def predictions(folder):
    lines = Path(folder, "predictions", "test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_cell_is_an_ordinary_run_of_its_recipe(whole, tmp_path):
    cell = next(each for each in whole.cells if each["name"] == "data-01-seed-01")
    wanted = [f"seeds.{name}={cell[name]}" for name in ("init", "order", "noise")]
    wanted += ["data.draw=bootstrap", "data.draw_number=1"]
    alone = verbs.run("tiny.toml", output=tmp_path / "alone", overrides=wanted)
    report = read(whole.folder / "runs/data-01-seed-01/report.json")
    assert report["fingerprint"] == alone.fingerprint
    assert report["metrics"]["accuracy"] == cell["score"]


def test_cells_differ_in_what_the_design_says(whole):
    facts = {name: read(whole.folder / "runs" / name / "run.json") for name in NAMES}
    data = {name: each["data"] for name, each in facts.items()}
    assert len({each["test"] for each in data.values()}) == 1
    assert len({each["validation"] for each in data.values()}) == 1
    assert data["data-00-seed-00"] == data["data-00-seed-01"]
    assert data["data-00-seed-00"]["train"] != data["data-01-seed-00"]["train"]
    seeds = {name: each["seeds"] for name, each in facts.items()}
    assert seeds["data-00-seed-00"] == seeds["data-01-seed-00"]
    assert seeds["data-00-seed-00"]["subset"] == seeds["data-00-seed-01"]["subset"]
    assert seeds["data-00-seed-00"]["init"] != seeds["data-00-seed-01"]["init"]


def test_figures_follow_from_the_runs(whole):
    names = [each["name"] for each in whole.cells]
    rows = [predictions(whole.folder / "runs" / name) for name in names]
    right = np.array([[r["prediction"] == r["label"] for r in each] for each in rows])
    said = np.array([[r["prediction"] for r in each] for each in rows])
    scores = right.mean(axis=1)
    found = whole.results
    assert found["score"]["mean"] == pytest.approx(scores.mean())
    assert found["score"]["sd"] == pytest.approx(scores.std(ddof=1))
    assert found["score"]["worst"] == scores.min()
    pairs = list(itertools.combinations(range(4), 2))
    differ = np.mean([(said[a] != said[b]).mean() for a, b in pairs])
    assert found["agreement"]["disagreement"] == pytest.approx(differ)
    flips = [(right[a] & ~right[b]).mean() for a, b in itertools.permutations(range(4), 2)]
    assert found["agreement"]["negative_flips"] == pytest.approx(np.mean(flips))
    labels = [r["label"] for r in rows[0]]
    majority = max(labels.count(name) for name in labels) / len(labels)
    assert found["failed"]["constant"] == pytest.approx(majority)
    assert found["failed"]["value"] == np.mean(scores <= majority)
    shares = np.array([[r["probabilities"]["a"] for r in each] for each in rows])
    moves = np.abs(shares - shares.mean(axis=0)).mean(axis=0)
    assert found["instability"]["mean"] == pytest.approx(moves.mean())


def test_variance_is_split_as_in_a_two_way_analysis(whole):
    table = np.zeros((2, 2))
    for cell in whole.cells:
        table[cell["data"], cell["seed"]] = cell["score"]
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = ((table - rows[:, None] - columns + table.mean()) ** 2).sum()
    split = whole.results["variance"]
    assert split["rest"]["value"] == pytest.approx(rest)
    raw = {"data": 2 * rows.var(ddof=1) - rest, "seed": 2 * columns.var(ddof=1) - rest}
    for name, value in raw.items():
        assert split[name]["value"] == pytest.approx(max(0, value / 2), abs=1e-12)


def test_the_shakiest_example_is_named_with_its_text(whole):
    first = whole.results["shakiest"][0]
    report = read(whole.folder / "report.json")
    section = next(each for each in report["sections"] if each["id"] == "shakiest")
    shown = section["blocks"][0]["rows"][0]
    assert shown["row"] == first["row"]
    assert sum(first["answers"].values()) == 4
    assert shown["text"].strip()


def test_weights_and_representations(whole):
    drift = read(whole.folder / "runs/data-00-seed-00/aftermath.json")
    assert set(drift["groups"]) == {"embeddings", "block.0", "block.1", "head"}
    assert 0 < drift["groups"]["block.0"] < 10
    cka = whole.results["cka"]
    assert (cka["pairs"], cka["examples"], cka["features"]) == (6, 16, 8)
    assert 0 <= cka["least"] <= cka["mean"] <= 1


def test_report_and_page(whole):
    report = read(whole.folder / "report.json")
    assert [each["id"] for each in report["sections"]] == [
        "runs",
        "variance",
        "agreement",
        "shakiest",
        "weights",
    ]
    assert report["verdict"] == whole.verdict
    assert whole.verdict.startswith("Over 4 runs accuracy on the test split is 0.")
    assert "comes from the training data" in whole.verdict
    page = (whole.folder / "report.html").read_text()
    assert "Stability of tiny" in page
    # Of provenance, what is the same in all runs: not what they were trained on, nor the seeds that differ.
    one = read(whole.folder / "runs" / whole.cells[0]["name"] / "run.json")
    facts = report["facts"]
    assert facts["libraries"] == one["libraries"]
    assert facts["data"] == {name: one["data"][name] for name in ("validation", "test")}
    assert set(facts["seeds"]) == {"subset"}
    assert not {"command", "status"} & set(facts)
    assert "What is the same in all runs." in page
    assert one["data"]["test"] in page
    assert "Not shown here" not in page


def test_what_has_ended_is_not_done_again(tmp_path):
    first = stability("s")
    before = {path: path.stat().st_mtime_ns for path in Path("s/runs").rglob("*")}
    assert stability("s").results == first.results
    assert {path: path.stat().st_mtime_ns for path in Path("s/runs").rglob("*")} == before


def test_another_study_is_refused(sft):
    arguments = ("stability", "tiny.toml", "-o", "s", "--executor", "inline", "--data", 1)
    assert sft(*arguments, "--seeds", 2)[0] == 0
    code, _, err = sft(*arguments, "--seeds", 3)
    assert code == 1
    assert "holds a study with other design" in err
    code, _, err = sft(*arguments, "--seeds", 2, "--set", "optimizer.lr=0.1")
    assert "holds a study with other recipe" in err
    Path("other").mkdir()
    Path("other/thing").touch()
    code, _, err = sft("stability", "tiny.toml", "-o", "other")
    assert "holds 'thing' and no study" in err


def test_a_run_that_diverges_is_a_failed_one(monkeypatch):
    monkeypatch.setenv("STUDY_BAD", "data-01-seed-00 nan")
    found = stability(seeds=1, data=3)
    states = {cell["name"]: cell["state"] for cell in found.cells}
    assert states["data-01-seed-00"] == "failed"
    assert found.results["score"]["runs"] == 2
    failed = sum(c["score"] is None or c["score"] <= 0.625 for c in found.cells)
    assert found.results["failed"]["value"] == pytest.approx(failed / 3)
    assert "missing" in found.results["variance"]
    # It has failed for good: the same command does not try it again.
    assert stability(seeds=1, data=3).results == found.results


def test_a_hopeless_run_is_stopped_and_counted_as_failed(monkeypatch):
    monkeypatch.setenv("STUDY_BAD", "data-00-seed-04 wrong")
    found = stability(
        data=1,
        seeds=5,
        vary=("noise",),
        drop=0.3,
        overrides=["train.epochs=6", "data.validation=40", "backbone.dropout=0.0", "data.test=8"],
    )
    last = found.cells[-1]
    assert (last["name"], last["state"]) == ("data-00-seed-04", "stopped")
    assert last["reason"].startswith("hopeless: accuracy 0.")
    assert "median of 4 other runs" in last["reason"]
    assert [cell["state"] for cell in found.cells[:4]] == ["complete"] * 4
    assert found.results["runs"]["stopped"] == 1
    assert found.results["score"]["runs"] == 4
    steps = read("s/runs/data-00-seed-04/report.json")["steps"]
    assert steps < read("s/runs/data-00-seed-00/report.json")["steps"]


def test_one_seed_varies_alone():
    found = stability(vary=("init",), data=None, seeds=2)
    facts = [read(f"s/runs/{cell['name']}/run.json") for cell in found.cells]
    assert facts[0]["data"] == facts[1]["data"]
    differing = {n for n in facts[0]["seeds"] if facts[0]["seeds"][n] != facts[1]["seeds"][n]}
    assert differing == {"init"}


def test_json_and_table(sft, monkeypatch):
    arguments = ("stability", "tiny.toml", "-o", "s", "--executor", "inline", "--seeds", 2)
    code, out, _ = sft(*arguments, "--vary", "order, noise", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["results"]["runs"]["complete"] == 2
    code, out, _ = sft(*arguments, "--vary", "order,noise")
    assert "2 runs, 2 of them done" in out
    assert found["verdict"] in " ".join(out.split())


def test_a_mistake_leaves_nothing_behind(sft):
    code, _, err = sft(
        "stability", "tiny.toml", "-o", "s", "--executor", "inline", "--set", "data.test=1000"
    )
    assert code == 3
    assert "[data] test = 1000" in err
    assert not Path("s/study.json").exists()
    assert sft("stability", "tiny.toml", "-o", "s", "--set", "optimizer.lrr=1")[0] == 2


def test_a_study_needs_predictions():
    with pytest.raises(RecipeError, match=r"leave `evaluation.test` and"):
        stability(overrides=["evaluation.predictions=false"])
    assert not Path("s").exists()
