"""The verb `probe`: on finished runs, on models that are no run's, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
from watching import TEXTS

from sft_engine import CheckpointError, OutputError, RecipeError
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_probes.foreign import in_their_order
from sft_probes.probing import probe

TYPOS = '[[probe]]\nuse = "typos"\nexamples = 10\nseverities = [0.2, 0.6]\n'

pytestmark = pytest.mark.usefixtures("tiny_catalog")


@pytest.fixture
def run(carry_out):
    return carry_out("text", TYPOS, overrides=["train.epochs=1"]).folder


def read(path):
    return json.loads(path.read_text())


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_finished_run_gives_what_its_training_reported(run, tmp_path) -> None:
    before = tree(run)
    probed = probe(run, output=tmp_path / "out")
    report = read(run / "report.json")
    assert probed.probes == report["probes"]
    assert [s for s in report["sections"] if s["id"] == "typos"] == probed.sections
    assert list(probed.views) == ["test", "test/typos@0.2", "test/typos@0.6"]
    assert probed.views["test"]["accuracy"] == report["metrics"]["accuracy"]
    assert tree(run) == before

    written = read(tmp_path / "out" / "probes.json")
    assert written["probes"] == probed.probes
    assert written["sections"] == probed.sections
    for name in ("test.jsonl", "test/typos@0.2.jsonl"):
        mine, theirs = (f / "predictions" / name for f in (tmp_path / "out", run))
        assert mine.read_bytes() == theirs.read_bytes()


def test_probes_are_named_and_set(run, tmp_path) -> None:
    options = ["typos.examples=5", "whitespace.severities=[0.3]", "evaluation.batch_size=2"]
    probed = probe(run, ["whitespace", "typos"], overrides=options, output=tmp_path / "out")
    assert list(probed.probes) == ["whitespace", "typos"]
    assert probed.probes["whitespace"]["severities"] == [0, 0.3]
    assert probed.probes["typos"]["severities"] == [0, 0.2, 0.6]  # of the recipe
    assert probed.probes["typos"]["examples"] == 5


def test_a_recipe_without_probes_gets_the_usual_ones(carry_out, tmp_path, monkeypatch) -> None:
    folder = carry_out("text", overrides=["train.epochs=1"]).folder
    monkeypatch.chdir(tmp_path)
    probed = probe(folder, overrides=["typos.examples=4"])
    usual = ["typos", "casing", "punctuation", "synonyms", "calibration", "selective"]
    assert list(probed.probes) == usual
    assert probed.folder.as_posix() == "probes/run"
    assert probe(folder, ["casing"]).folder.as_posix() == "probes/run-2"


def test_update_writes_into_the_report_of_the_run(run) -> None:
    before = read(run / "report.json")
    probe(run, ["homoglyphs"], overrides=["homoglyphs.severities=[0.5]"], update=True)
    after = read(run / "report.json")
    assert list(after["probes"]) == ["typos", "homoglyphs"]
    assert after["sections"][: len(before["sections"])] == before["sections"]
    assert after["sections"][-1]["id"] == "homoglyphs"
    assert after["metrics"] == before["metrics"]
    assert (run / "predictions" / "test" / "homoglyphs@0.5.jsonl").exists()
    probe(run, ["homoglyphs"], overrides=["homoglyphs.severities=[0.5]"], update=True)
    assert read(run / "report.json") == after


def test_a_model_that_is_no_runs(run, tmp_path) -> None:
    """The tiny backbone reads a folder by `name`; it has no names for its classes."""
    model = tmp_path / "theirs"
    shutil.copytree(run / "model", model)
    recipe = tmp_path / "task.toml"
    recipe.write_text(TEXTS + TYPOS)
    order = 'data.label_names=["a", "b"]'
    probed = probe(model, recipe=recipe, overrides=[order], output=tmp_path / "out")
    assert probed.probes == read(run / "report.json")["probes"]
    with pytest.raises(RecipeError, match="does not say what its classes are called"):
        probe(model, recipe=recipe, output=tmp_path / "none")
    with pytest.raises(RecipeError, match=r"is not trained for this task: .* would be random"):
        probe("nothing-there", recipe=recipe, overrides=[order], output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (("NEGATIVE", "POSITIVE"), ("negative", "Positive")),
        (("positive", "Negative"), ("Positive", "negative")),
    ],
)
def test_classes_are_compared_by_name(theirs, expected) -> None:
    assert in_their_order(("negative", "Positive"), theirs, "m") == expected


def test_other_classes_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"has the classes NEG, POS, and the data has 0, 1: .*label_names"
    ):
        in_their_order(("0", "1"), ("NEG", "POS"), "m")


def test_what_does_not_fit_is_said(run, tmp_path) -> None:
    recipe = tmp_path / "task.toml"
    recipe.write_text(TEXTS)
    with pytest.raises(CheckpointError, match=r"no recipe\.toml; for a model that is no run's"):
        probe(tmp_path / "none")
    with pytest.raises(RecipeError, match="is a run folder, which has a recipe of its own"):
        probe(run, recipe=recipe)
    with pytest.raises(RecipeError, match=r'found "typoz", which no .* did you mean'):
        probe(run, ["typoz"], output=tmp_path / "out")
    with pytest.raises(RecipeError, match=r"probe\[0\].rate"):
        probe(run, ["typos"], overrides=["typos.rate=0.1"], output=tmp_path / "out")
    with pytest.raises(RecipeError, match="there is no split 'dev', the data has train"):
        probe(run, ["typos"], overrides=["typos.split=dev"], output=tmp_path / "out")
    with pytest.raises(OutputError, match="excludes --output"):
        probe(run, output=tmp_path / "out", update=True)
    with pytest.raises(OutputError, match="is not empty"):
        probe(run, output=run)
    assert not (tmp_path / "out").exists()


def test_the_verb_prints_a_table_or_an_object(run, tmp_path, capsys) -> None:
    arguments = ["probe", str(run), "--with", "typos,casing", "--set", "casing.examples=4"]
    assert exit_code_of(cli, [*arguments, "-o", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    for word in ("typos", "casing", "upper", "clean", "changed", "Keyboard typos: Accuracy"):
        assert word in shown
    assert exit_code_of(cli, [*arguments, "-o", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["probes"]) == ["typos", "casing"]
    assert exit_code_of(cli, [*arguments, "-o", str(tmp_path / "c"), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "c")


def test_an_evaluation_of_other_data_does_not_mind_the_probes(run, tmp_path) -> None:
    from sft_engine import verbs

    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\naa bb,a\nbb bb,b\n")
    assert "accuracy" in verbs.evaluate(run, split="other", data=rows)
    found = verbs.evaluate(run, split="test", data=rows)
    assert "typos@0.2/accuracy" in found
    assert next(iter(verbs.predict(run, ["aa bb"])))["prediction"] in ("a", "b")
