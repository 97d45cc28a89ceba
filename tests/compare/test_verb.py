"""The verb and the function, on folders that the engine wrote and on written ones."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from compared_folders import right

import sft_engine
from sft_engine.comparing.answers import measure_of, value_of
from sft_engine.comparing.runs import read_member
from sft_engine.sections import BLOCKS
from sft_engine.testing.runs import run_recipe

RUNS = {
    "plain-0": ["seed=0"],
    "plain-1": ["seed=1"],
    "slow-0": ["seed=0", "optimizer.lr=1e-6"],
    "slow-1": ["seed=1", "optimizer.lr=1e-6"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four finished runs: two recipes, two seeds, one probe view."""
    root = tmp_path_factory.mktemp("trained")
    always = [
        "train.epochs=1",
        "data.test=32",
        "optimizer.lr=0.03",
        'extension=[{use="test/noise"}]',
    ]
    for name, own in RUNS.items():
        run_recipe(
            root / name,
            overrides=[*always, *own],
            components={("extension", "test/noise"): "compared_folders:Noise"},
        )
    return root


def test_the_folders_of_real_runs(trained):
    groups = {name: [trained / f"{name}-{seed}" for seed in (0, 1)] for name in ("plain", "slow")}
    found = sft_engine.compare(groups, resamples=500)
    (pair,) = found.pairs
    assert (found.metric, found.split, found.examples) == ("accuracy", "test", 32)
    assert (pair.evidence.over_runs.test, pair.evidence.over_runs.pairs) == (
        "paired permutation",
        2,
    )
    assert pair.verdict.code == "undecided"
    assert "6 pairs are the least" in found.verdict
    assert [each.evidence.view for each in found.views] == ["noise@1"]
    assert found.views[0].evidence.examples == 32
    assert found.notes == ()
    for name, group in zip(groups, found.groups, strict=True):
        for folder, value in zip(groups[name], group.values, strict=True):
            report = json.loads((folder / "report.json").read_text())
            assert value == report["metrics"]["accuracy"]


def test_predictions_of_real_runs_give_the_metrics_of_their_reports(trained):
    member = read_member(trained / "slow-0")
    answers = member.answers("clean")
    for name in ("accuracy", "f1", "balanced-accuracy", "nll"):
        recorded = member.values["clean"][name]
        assert value_of(measure_of(name, "classification"), answers) == pytest.approx(
            recorded, abs=1e-6
        )


def test_two_of_them_by_the_command_line(trained, sft):
    code, out, err = sft("compare", trained / "plain-0", trained / "slow-0", "--resamples", 500)
    assert (code, err) == (0, "")
    assert "McNemar mid-p" in out
    assert "accuracy by group" in out


@pytest.fixture
def two(folders):
    return [
        folders.run("a", right(0.9), views={"typos@1": right(0.8)}),
        folders.run("b", right(0.8), views={"typos@1": right(0.7)}),
    ]


def test_the_output_is_a_comparison_that_the_report_can_show(two, sft, tmp_path):
    file = tmp_path / "cmp" / "comparison.json"
    code, out, _ = sft("compare", *two, "--output", file)
    assert code == 0
    assert f"written: {file}" in out
    found = json.loads(file.read_text(), parse_constant=lambda name: None)
    assert (found["kind"], found["title"], found["examples"]) == (
        "comparison",
        "a and b",
        {"test": 200},
    )
    assert found["verdict"] in " ".join(out.split())
    assert [section["id"] for section in found["sections"]] == ["comparison", "comparison-probes"]
    for section in found["sections"]:
        assert section["title"]
        assert section["summary"]
        assert {block["kind"] for block in section["blocks"]} <= set(BLOCKS)
    text = json.dumps(found["sections"], allow_nan=False)
    assert "a is better than b" in text
    assert [path.name for path in file.parent.iterdir()] == ["comparison.json"]


def test_json_is_one_object(two, sft):
    code, out, err = sft("compare", *two, "--json", "--margin", 0.5)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["pairs"][0]["verdict"]["code"] == "equivalent"
    assert found["pairs"][0]["evidence"]["mcnemar"]["only_first"] == 20
    code, out, _ = sft("compare", two[0], "nowhere", "--json")
    assert code == 1
    assert "nowhere is neither a run folder" in json.loads(out)["error"]


def test_other_examples_end_with_the_code_of_data(folders, two, sft):
    path = two[1] / "predictions/test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    code, out, err = sft("compare", *two)
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_said(two, sft, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = sft("compare", *two, "-o", tmp_path / "file" / "x.json")
    assert code == 1
    assert "x.json cannot be written" in err
    code, _, err = sft("compare")
    assert code == 2
    assert "RUN_OR_STUDY" in err


def test_the_same_figures_each_time(two):
    one, again = (sft_engine.compare(two, metric="f1") for _ in range(2))
    assert one.as_json() == again.as_json()


def test_reading_and_comparing_loads_no_torch(two):
    code = (
        "import sys\n"
        "from sft_engine.comparing import compare_runs\n"
        "assert not {'torch', 'scipy'} & set(sys.modules)\n"
        f"print(compare_runs({[str(each) for each in two]!r}).pairs[0].verdict.code)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("better\n", "")


def test_names_and_texts_are_no_markup(folders, sft):
    odd = [folders.run("[red]x", right(0.9)), folders.run("<script>", right(0.7))]
    code, out, _ = sft("compare", *odd)
    assert code == 0
    assert "[red]x is better than <script>" in out
    assert np.isfinite(sft_engine.compare(odd).pairs[0].verdict.p)
