"""Explanations of single answers, in `predict` and in the report of a run; and whether runs of a study agree."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from watching import NUMBERS

from sft_engine import RecipeError, predict, verbs
from sft_engine.recipe import parse_recipe
from sft_engine.reporting import write_page, write_report
from sft_engine.study import StudySettings
from sft_probes.probing import probe

PROBE = '[[probe]]\nuse = "attributions"\nexamples = 5\n'
LINEAR = NUMBERS.replace('use = "mlp"', 'use = "mlp"\nhidden = []')
ONCE = ["train.epochs=1"]
ROWS = {
    "text": ["aa bb, cc", ""],
    "number": [{"a": 0.5, "b": 1.0, "c": -2.0}],
    "image": [[[[200] * 3] * 32] * 16 + [[[10] * 3] * 32] * 16],
}

pytestmark = pytest.mark.usefixtures("tiny_catalog")


def read(path):
    return json.loads(Path(path).read_text())


def rows_of(kind):
    return [{"image": each} for each in ROWS[kind]] if kind == "image" else ROWS[kind]


# --- Single answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "number", "image"])
def test_an_answer_is_explained_part_by_part(carry_out, kind) -> None:
    run = carry_out(kind, overrides=ONCE).folder
    rows = rows_of(kind)
    plain = list(predict(run, rows))
    for method in ("integrated-gradients", "input-x-gradient", "occlusion"):
        found = list(predict(run, rows, explain=method))
        explained = [record.pop("explanation") for record in found]
        assert found == plain
        for record, each in zip(plain, explained, strict=True):
            assert each["method"] == method
            assert each["output"] == record["prediction"]
            assert len(each["scores"]) == len(each["parts"])
            if method == "integrated-gradients":
                total = math.fsum(each["scores"])
                assert each["gap"] == pytest.approx(total - (each["value"] - each["baseline"]))
                assert abs(each["gap"]) < 0.02
            else:
                assert "gap" not in each
        if kind == "text":
            assert len(explained[0]["parts"]) == len(ROWS["text"][0])  # letters are its tokens
        elif kind == "number":
            assert explained[0]["parts"] == ["a", "b", "c"]
        else:
            assert explained[0]["shape"] == [8, 8]
            assert explained[0]["heat_map"].startswith("data:image/png;base64,")


def test_of_a_linear_model_it_is_weight_times_column(tmp_path) -> None:
    run = verbs.run(parse_recipe(LINEAR, "r.toml", ONCE), output=tmp_path / "run").folder
    weights = load_file(run / "model" / "model.safetensors")["head.weight"].double()
    config = read(run / "model" / "config.json")
    mean, deviation = (
        torch.tensor(config[name], dtype=torch.float64) for name in ("mean", "deviation")
    )
    row = ROWS["number"][0]
    scaled = (torch.tensor(list(row.values()), dtype=torch.float64) - mean) / deviation
    for method in ("integrated-gradients", "input-x-gradient", "occlusion"):
        (record,) = predict(run, [row], explain=method)
        output = config["outputs"].index(record["prediction"])
        wanted = (weights[output] * scaled).tolist()
        assert record["explanation"]["scores"] == pytest.approx(wanted, abs=1e-5)


def test_a_recipe_says_how_and_the_command_line_may(carry_out, sft) -> None:
    table = '[explanation]\nuse = "integrated-gradients"\nsteps = 3\n'
    run = carry_out("text", table, overrides=ONCE).folder
    for options, method in (((), "integrated-gradients"), (("occlusion",), "occlusion")):
        code, out, _ = sft("predict", run, "aabb", "--explain", *options)
        assert code == 0
        assert json.loads(out)["explanation"]["method"] == method
    code, out, _ = sft("predict", run, "aabb")
    assert code == 0
    assert "explanation" not in json.loads(out)
    code, out, _ = sft("predict", run, "--format", "csv", "--explain", "--batch-size", 1, "aa", "b")
    assert code == 0
    first, second = csv.DictReader(io.StringIO(out))
    assert json.loads(first["explanation(parts)"]) == ["token 1", "token 2"]
    assert len(json.loads(second["explanation(scores)"])) == 1


def test_mistakes_are_a_sentence(carry_out, sft, monkeypatch) -> None:
    run = carry_out("text", overrides=ONCE).folder
    code, out, err = sft("predict", run, "aabb", "--explain", "integrated-gradient")
    assert (code, out) == (RecipeError.exit_code, "")
    assert 'found "integrated-gradient", which no installed plugin offers as explanation' in err
    assert "did you mean `integrated-gradients`?" in err
    code, _, err = sft(
        "predict", run, "a", "--explain", "occlusion", "--set", 'explanation.baseline="mask"'
    )
    assert code == RecipeError.exit_code
    assert 'allowed: "auto", "zero"' in err
    monkeypatch.setattr("sft_probes.explanations.find_spec", lambda _: None)
    for options in ((), ("occlusion",)):
        code, out, err = sft("predict", run, "aabb", "--explain", *options)
        assert (code, out) == (RecipeError.exit_code, "")
        assert "needs captum, which this Python lacks: pip install 'sft-engine[explain]'" in err
    with pytest.raises(RecipeError, match="needs captum"):
        carry_out("text", PROBE, overrides=ONCE, name="other")


def test_recordings_are_refused(carry_out) -> None:
    run = carry_out("sound", overrides=ONCE).folder
    with pytest.raises(RecipeError, match="texts, images and tables, and the inputs of this task"):
        list(predict(run, [], explain=""))
    with pytest.raises(RecipeError, match="disturbs"):
        carry_out("sound", PROBE, overrides=ONCE, name="other")


# --- In the report -------------------------------------------------------------------------------

BLOCK = {"text": "marked", "number": "bars", "image": "examples"}


@pytest.mark.parametrize("kind", ["text", "number", "image"])
def test_the_report_shows_the_most_certain_answers(carry_out, report_of, kind) -> None:
    outcome = carry_out(kind, PROBE, overrides=ONCE)
    report = report_of(outcome)
    facts = report["probes"]["attributions"]
    assert (facts["method"], facts["split"], facts["examples"]) == (
        "integrated-gradients",
        "test",
        5,
    )
    (section,) = [s for s in report["sections"] if s["id"] == "attributions"]
    assert "half of what speaks for or against an answer lies in" in section["summary"]
    assert BLOCK[kind] in {block["kind"] for block in section["blocks"]}
    assert "NaN" not in json.dumps(section)
    assert "heat_map" not in json.dumps(facts)

    records = [
        json.loads(line)
        for line in (outcome.folder / "predictions" / "test.jsonl").read_text().splitlines()
    ]
    by_row = {record["row"]: record for record in records}
    for each in facts["attributions"]:
        assert each["output"] == by_row[each["row"]]["label"]
    shown = [
        row.get("facts", row)
        for block in section["blocks"]
        if block["kind"] in ("marked", "examples")
        for row in block["rows"]
    ]
    right = [record for record in records if record["prediction"] == record["label"]]
    if shown and right:
        surest = max(right, key=lambda record: max(record["probabilities"].values()))
        assert shown[0]["probability"] == pytest.approx(
            max(surest["probabilities"].values()), abs=1e-5
        )


def test_a_finished_run_explains_what_its_training_explained(carry_out, report_of, tmp_path):
    outcome = carry_out("text", PROBE, overrides=ONCE)
    probed = probe(outcome.folder, output=tmp_path / "out")
    assert probed.probes == report_of(outcome)["probes"]


def test_texts_are_shown_as_text_and_words_by_sign(carry_out, report_of) -> None:
    outcome = carry_out("text", PROBE.replace("5", "0") + "shown = 40\n", overrides=ONCE)
    page = write_page(outcome.folder).read_text()
    assert "<script>" not in page.partition("</style>")[2]
    (section,) = [s for s in report_of(outcome)["sections"] if s["id"] == "attributions"]
    rows = [row for b in section["blocks"] if b["kind"] == "marked" for row in b["rows"]]
    largest = max(rows[0]["scores"], key=lambda s: abs(s or 0))
    assert f'data-value="{largest}"' in page
    assert 'class="for w5"' in page or 'class="against w5"' in page
    assert "<sup>+</sup>" in page
    text = write_report(outcome.folder, outcome.folder / "r.md", markdown=True).read_text()
    assert "what counts most" in text


@pytest.mark.parametrize("label", ["number", "many"])
def test_numbers_and_several_labels_are_explained_too(carry_out, report_of, label) -> None:
    task = {
        "number": ["task.use='tabular-regression'"],
        "many": ["task.labels='multi'", "task.separator=';'"],
    }[label]
    outcome = carry_out("number", PROBE, overrides=[*ONCE, *task, f"data.label='{label}'"])
    found = report_of(outcome)["probes"]["attributions"]["attributions"]
    assert len(found) == 5
    assert all(len(each["scores"]) == 3 for each in found)
    assert {each["output"] for each in found} <= {"number": {"label"}, "many": {"p", "q"}}[label]


# --- In the report of a study --------------------------------------------------------------------


def test_a_study_says_whether_its_runs_agree(tmp_path) -> None:
    recipe = parse_recipe(LINEAR + PROBE + "top = 2\n", "tables.toml", ONCE)
    study = verbs.stability(
        recipe,
        output=tmp_path / "s",
        settings=StudySettings(data=1, seeds=3, vary=("init",), executor="inline"),
    )
    report = read(study.folder / "report.json")
    (section,) = [s for s in report["sections"] if s["id"] == "attributions"]
    assert {block["kind"] for block in section["blocks"]} == {"table", "matrix"}
    runs = [
        read(study.folder / "runs" / cell["name"] / "report.json")["probes"]["attributions"]
        for cell in study.cells
    ]
    scores = [[each["scores"] for each in run["attributions"]] for run in runs]
    assert len({tuple(each["row"] for each in run["attributions"]) for run in runs}) == 1
    wanted = [
        spearmanr(scores[a][i], scores[b][i]).statistic
        for a, b in ((0, 1), (0, 2), (1, 2))
        for i in range(5)
    ]
    found = report["probes"]["attributions"]
    assert found["kinds"]["all pairs of runs"]["spearman"] == pytest.approx(sum(wanted) / 15)
    assert found["kinds"]["other seed, same training data"]["pairs"] == 3
    assert "Do runs owe their answers to the same?" in (study.folder / "report.html").read_text()


def test_a_study_without_the_probe_has_no_such_section(tmp_path) -> None:
    recipe = parse_recipe(LINEAR, "tables.toml", ONCE)
    settings = StudySettings(data=1, seeds=2, vary=("init",), executor="inline")
    study = verbs.stability(recipe, output=tmp_path / "s", settings=settings)
    report = read(study.folder / "report.json")
    assert "probes" not in report
    assert "attributions" not in {section["id"] for section in report["sections"]}
