"""`run`, `resume`, `verify-resume`, `evaluate`: whole runs of a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sft_engine.cli.verify_resume import _verdict

# --- run -------------------------------------------------------------------------------------------


def test_run_shows_progress_then_metrics_then_paths(sft):
    ended = sft("run", "tiny.toml", "--output", "out")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert "on 1 process" in lines[0]
    progress = [n for n, line in enumerate(lines) if line.startswith("train step=")]
    table = next(n for n, line in enumerate(lines) if re.match(r" ?accuracy +\d\.\d{4}", line))
    paths = [n for n, line in enumerate(lines) if line.endswith(("out/model", "out/report.json"))]
    assert len(progress) == 3
    assert progress[-1] < table < paths[0]
    assert len(paths) == 2
    assert Path("out/model/model.safetensors").exists()


def test_without_output_the_first_free_folder_is_taken(sft):
    ended = [sft("run", "tiny.toml", "--quiet") for _ in range(2)]
    assert [each.out for each in ended] == ["runs/tiny\n", "runs/tiny-2\n"]
    assert all(each.code == 0 for each in ended)


def test_quiet_prints_the_run_folder_alone(sft):
    ended = sft("run", "tiny.toml", "-q", "-o", "out")
    assert ended.code == 0
    assert ended.out == "out\n"
    assert "train step=" not in ended.err


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_json_is_one_object_on_standard_output(sft, quiet):
    ended = sft("run", "tiny.toml", "--json", "-o", "out", *quiet)
    assert ended.code == 0
    assert ended.out.count("\n") == 1
    result = json.loads(ended.out)
    assert result["folder"] == "out"
    assert result["split"] == "test"
    assert 0 <= result["metrics"]["accuracy"] <= 1
    assert re.fullmatch(r"[0-9a-f]{64}", result["fingerprint"])
    assert result["written"]["model"] == "out/model"
    assert ("train step=" in ended.err) is not bool(quiet)


def test_set_reaches_the_run(sft):
    assert sft("run", "tiny.toml", "-q", "-o", "out", "--set", "train.steps=1").code == 0
    assert "steps = 1" in Path("out/recipe.toml").read_text()
    report = json.loads(Path("out/report.json").read_text())
    assert report["steps"] == 1


def test_a_folder_that_holds_something_is_left_alone(sft):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    ended = sft("run", "tiny.toml", "-o", "out")
    assert ended.code == 1
    assert ended.err.startswith("error: out is not empty")
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("override", "code", "sentence"),
    [
        ("train.precison=fp32", 2, "did you mean `precision`?"),
        ("data.columns.label=stars", 3, "stars"),
        ("extension.0.use=tiny/halt", 4, "told to"),
    ],
)
def test_the_exit_code_says_what_was_wrong(sft, override, code, sentence):
    ended = sft("run", "tiny.toml", "-q", "-o", "out", "--set", override)
    assert ended.code == code
    assert sentence in ended.err
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert Path("out").exists() is (code == 4)  # nothing is written before training begins


def test_an_error_with_json_is_one_object(sft):
    ended = sft("run", "tiny.toml", "-q", "--json", "--set", "extension.0.use=tiny/halt")
    assert ended.code == 4
    result = json.loads(ended.out)
    assert result["exit_code"] == 4
    assert "told to" in result["error"]


def test_a_bug_is_raised_with_the_component_that_has_it(sft, capsysbinary):
    with pytest.raises(ZeroDivisionError) as caught:
        sft("run", "tiny.toml", "-q", "--json", "--set", "extension.0.use=tiny/bug")
    assert caught.value.__notes__ == ['in extension[0] "tiny/bug" of sft-tiny 1.0']
    assert json.loads(capsysbinary.readouterr().out)["error"].startswith("ZeroDivisionError: ")


# --- resume ----------------------------------------------------------------------------------------


def test_a_signal_ends_with_75_and_resume_goes_on(sft):
    ended = sft("run", "tiny.toml", "-o", "out", "--set", "extension.0.use=tiny/term")
    assert ended.code == 75
    assert re.fullmatch(r"error: .*SIGTERM before step 2; .*checkpoint.*\n", ended.err), ended.err
    assert not Path("out/model").exists()
    ended = sft("resume", "out", "--json")
    assert ended.code == 0, ended.err
    assert "resumed from step 2 of 3" in ended.err
    assert json.loads(ended.out)["folder"] == "out"
    assert Path("out/model").exists()


@pytest.mark.parametrize("target", ["absent", "."])
def test_resume_wants_a_run_folder(sft, target):
    ended = sft("resume", target)
    assert ended.code == 1
    assert "is not a run folder" in ended.err


def test_resume_of_a_finished_run_says_so(sft, trained):
    ended = sft("resume", trained)
    assert ended.code == 1
    assert "has ended already" in ended.err


# --- verify-resume ---------------------------------------------------------------------------------

SHORT = ("--steps", "4", "--interrupt-at", "2")


@pytest.fixture
def _in_children(site, monkeypatch):
    """`verify-resume` resumes in a fresh process, which must find the fake distribution as well."""
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.mark.usefixtures("_in_children")
def test_verify_resume_prints_two_equal_hashes(sft, folder):
    ended = sft("verify-resume", "tiny.toml", *SHORT, "--quiet")
    assert ended.code == 0, ended.err
    first, second, verdict = ended.out.splitlines()
    assert verdict.startswith("equal")
    assert first.split()[-1] == second.split()[-1]
    assert re.fullmatch(r"[0-9a-f]{64}", first.split()[-1])
    assert "interrupted at step 2" in second
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


@pytest.mark.usefixtures("_in_children")
def test_verify_resume_catches_a_component_that_forgets(sft):
    arguments = ("verify-resume", "tiny.toml", *SHORT, "--set", "extension.0.use=tiny/forget")
    ended = sft(*arguments, "--json")
    assert ended.code == 1
    proof = json.loads(ended.out)
    assert proof["equal"] is False
    assert proof["uninterrupted"] != proof["resumed"]
    assert "train step=" in ended.err


def test_the_verdict_names_what_differs():
    assert _verdict(states_equal=False, losses_equal=True) == "UNEQUAL: the states"
    assert _verdict(states_equal=True, losses_equal=False) == "UNEQUAL: losses on the way"
    both = _verdict(states_equal=False, losses_equal=False)
    assert both == "UNEQUAL: the states and losses on the way"


# --- evaluate --------------------------------------------------------------------------------------


def test_evaluate_prints_the_metrics_of_the_run(sft, trained):
    report = json.loads((trained / "report.json").read_text())
    ended = sft("evaluate", trained, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    metrics = result["metrics"]
    assert result["split"] == "test"
    for name in ("accuracy", "nll"):
        assert metrics[name] == pytest.approx(report["metrics"][name])
        assert metrics[f"same/{name}"] == metrics[name]


def test_evaluate_shows_a_table_for_each_view(sft, trained):
    ended = sft("evaluate", trained, "--split", "validation")
    assert ended.code == 0
    assert re.search(r"^ ?validation +value", ended.out, re.MULTILINE)
    assert re.search(r"^ ?validation, same +value", ended.out, re.MULTILINE)
    assert len(re.findall(r"^ ?accuracy +\d\.\d{4}", ended.out, re.MULTILINE)) == 2
    assert len(re.findall(r"true \\ predicted", ended.out)) == 1


MANY = """
[task]
use = "tabular-classification"
[data]
use = "csv"
path = "many.csv"
validation = 60
test = 60
[backbone]
use = "mlp"
[train]
device = "cpu"
steps = 1
"""


def test_evaluate_shows_every_class_of_many_if_asked_to(sft):
    lines = [f"{i % 60},{i % 7},class{i % 60}" for i in range(300)]
    Path("many.csv").write_text("\n".join(["one,two,label", *lines]))
    Path("many.toml").write_text(MANY)
    assert sft("run", "many.toml", "-o", "many", "-q").code == 0
    plain = json.loads(sft("evaluate", "many", "--json").out)["metrics"]
    assert list(plain) == ["accuracy", "f1", "balanced-accuracy", "nll"]
    asked = json.loads(sft("evaluate", "many", "--json", "--per-class").out)["metrics"]
    assert {name: asked[name] for name in plain} == plain
    support = [asked[f"support/class{i}"] for i in range(60)]
    assert sum(support) == 60
    recall = [asked[f"recall/class{i}"] for i in range(60)]
    there = [value for value, count in zip(recall, support, strict=True) if count]
    assert asked["balanced-accuracy"] == pytest.approx(sum(there) / len(there))
    shown = sft("evaluate", "many", "--per-class").out
    assert re.search(r"^ ?class +precision +recall +f1 +support", shown, re.MULTILINE)
    assert len(re.findall(r"^ ?class\d+ ", shown, re.MULTILINE)) == 60
    few = sft("evaluate", "many", "--per-class", "--set", 'evaluation.metrics=["mcc"]', "--json")
    assert {"mcc", "f1/class7"} <= set(json.loads(few.out)["metrics"])


def test_evaluate_takes_other_data(sft, trained):
    Path("other.csv").write_text("text,label\naaaa,a\nbbbb,b\naab,a\n")
    result = json.loads(sft("evaluate", trained, "--data", "other.csv", "--json").out)
    assert result["data"] == "other.csv"
    assert sum(map(sum, result["metrics"]["confusion_matrix"])) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--split", "validaton"], 3, "validation"),
        (["--data", "absent.csv"], 3, "absent.csv"),
        (["--set", "evaluation.metrics=['accurcy']"], 2, "accurcy"),
    ],
)
def test_evaluate_says_what_is_wrong(sft, trained, arguments, code, sentence):
    ended = sft("evaluate", trained, *arguments)
    assert ended.code == code
    assert sentence in ended.err
    assert ended.err.startswith("error: ")


def test_evaluate_changes_nothing_in_the_run(sft, trained):
    def state():
        return {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}

    before = state()
    assert sft("evaluate", trained).code == 0
    assert state() == before
