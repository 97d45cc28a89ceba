"""Whole runs with every probe: the same for every model, and what is reported is what a hand computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import watching
from watching import COMPONENTS, RECIPES

from sft_engine import Interrupted, RecipeError, order, sections
from sft_engine.assemble import assemble
from sft_engine.evaluation import evaluate
from sft_engine.testing.runs import plan_recipe
from sft_probes import PROBES as ALL
from sft_probes.severity import RowProbe, chosen

CHECKLIST = """
[[test]]
name = "more of a"
type = "DIR"
label = "a"
append = ["aa aa aa"]
[[test]]
name = "a and b"
type = "MFT"
label = "a"
texts = ["aa aa ab", "bb bb"]
[[test]]
name = "big"
type = "INV"
replace = {big = ["large"], movie = ["film", "picture"]}
"""
PROBES = [name for name in ALL if name != "attributions"]  # see test_attributions.py
NUMBERS = ("feature-noise", "missing", "shift")
ATTACKS = ("fgsm", "pgd", "autoattack", "embedding-fgsm", "embedding-pgd")
PICTURES = (
    "corruptions",
    "rotation",
    "translation",
    "occlusion",
    "resolution",
    "jpeg",
    *ATTACKS[:3],
)
SOUNDS = ("background-noise", "speed", "gain")
KINDS = (
    dict.fromkeys(PROBES, "text")
    | dict.fromkeys(NUMBERS, "number")
    | dict.fromkeys(PICTURES, "image")
    | dict.fromkeys(SOUNDS, "sound")
)
SEVERE = {
    "corruptions": [1, 5],
    "rotation": [10, 90],
    "resolution": [2, 8],
    "jpeg": [50, 95],
    "fgsm": [2, 32],
    "pgd": [2, 32],
    "autoattack": [2, 32],
    "background-noise": [10, 0],
    "speed": [0.5, 1.5],
    "casing": ["lower", "upper", "title"],
    "shift": [-0.2, 0.1],
    "feature-noise": [0.5, 2.0],
    "word-substitution": [0.3, 1.0],
}
MORE = {
    "corruptions": ('corruptions = ["fog", "gaussian_noise"]',),
    "autoattack": ("iterations = 2", "queries = 3"),
}
"""Further options."""
NAMED = {
    "corruptions": ["fog-1", "gaussian_noise-1", "fog-5", "gaussian_noise-5"],
    "background-noise": ["10dB", "0dB"],
    "speed": ["0.5x", "1.5x"],
    "gain": ["0.2x", "0.6x"],
}
"""Severities as the report has them, where they are not the numbers of the recipe."""
CHECKS = {"fgsm": ["noise-check"], "pgd": ["noise-check", "fgsm-check", "64-check"]}
"""Views that are not on the curve."""
MEASURES = ("calibration", "selective", "ood", "label-noise", "groups")
"""They disturb nothing; their figures are tested in test_measures.py."""
ROWS = [
    name
    for name in PROBES
    if name not in ("checklist", "word-substitution", "sensitivity", *MEASURES, *ATTACKS)
]
LIKE_OTHERS = [
    pytest.param(name, marks=[] if name in ("typos", "casing", "shift") else pytest.mark.slow)
    for name in ROWS
]
"""They differ from others in pure functions alone, which have tests of their own."""
BLOCKS = {"text", "table", "lines", "bars", "matrix", "examples", "findings"}


@pytest.fixture(autouse=True)
def checklist(tmp_path):
    (tmp_path / "tests.toml").write_text(CHECKLIST)
    return tmp_path / "tests.toml"


def lines_of(path):
    return path.read_text().splitlines()


def table(name, folder, *more):
    lines = ["[[probe]]", f'use = "{name}"', *more]
    if name not in MEASURES:
        lines.append("examples = 20")
    if name == "groups":
        lines.append('column = "label"')
    if name in MEASURES:
        return "\n".join(lines) + "\n"
    if name == "checklist":
        lines.append(f'path = "{folder}/tests.toml"')
    else:
        lines.append(f"severities = {json.dumps(SEVERE.get(name, [0.2, 0.6]))}")
        lines += MORE.get(name, ())
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_conforms(carry_out, report_of, tmp_path, name) -> None:
    outcome = carry_out(KINDS[name], table(name, tmp_path), overrides=["train.epochs=1"])
    report = report_of(outcome)
    (section,) = [s for s in report["sections"] if s["id"] == name]
    assert section["title"]
    assert section["summary"].endswith(".")
    assert {block["kind"] for block in section["blocks"]} <= BLOCKS
    facts = report["probes"][name]
    assert facts["split"] == "test"
    assert "NaN" not in json.dumps(report["sections"])
    if name in MEASURES:
        assert facts["examples"] == 36
        return
    if name == "checklist":
        assert [test["name"] for test in facts["tests"]] == ["more of a", "a and b", "big"]
        return
    severities = NAMED.get(name, SEVERE.get(name, [0.2, 0.6]))
    assert facts["severities"] == [0, *severities]
    assert facts["examples"] == (20 if KINDS[name] == "text" else 8)
    assert len(facts["values"]) == len(facts["changed"]) == len(severities) + 1
    assert (facts["changed"][0], facts["drop"][0]) == (0, 0)
    views = [f"{name}@{s}" if isinstance(s, str) else f"{name}@{s:g}" for s in severities]
    records = [json.loads(line) for line in lines_of(outcome.folder / "metrics.jsonl")]
    seen = {r["view"]: r for r in records if r["kind"] == "evaluation" and r["split"] == "test"}
    assert list(seen) == ["", *views, *(f"{name}@{check}" for check in CHECKS.get(name, ()))]
    for place, view in enumerate(views, 1):
        assert seen[view]["examples"] == facts["examples"]
        assert seen[view]["accuracy"] == facts["values"][place]
        assert seen[view]["changed"] == facts["changed"][place]
        assert seen[view]["drop"] == pytest.approx(facts["values"][0] - facts["values"][place])
        lines = lines_of(outcome.folder / "predictions" / "test" / f"{view}.jsonl")
        right = [r["prediction"] == r["label"] for r in map(json.loads, lines)]
        assert len(right) == facts["examples"]
        assert np.mean(right) == pytest.approx(facts["values"][place])
    assert not any(r["view"] for r in records if r.get("split") == "validation")


@pytest.mark.parametrize(
    "name", ["typos", "missing", "word-substitution", "calibration", "ood", "sensitivity"]
)
def test_a_resumed_run_reports_the_same(carry_out, report_of, tmp_path, name) -> None:
    whole = carry_out(KINDS[name], table(name, tmp_path), name="whole")
    with pytest.raises(Interrupted):
        carry_out(KINDS[name], table(name, tmp_path), name="cut", stop_after=4)
    resumed = carry_out(KINDS[name], table(name, tmp_path), name="cut", resume=True)
    one, other = report_of(whole), report_of(resumed)
    assert one["sections"] == other["sections"]
    assert one["probes"] == other["probes"]


# --- what the model sees --------------------------------------------------------------------------


def seen(carry_out, name, folder, *overrides, more=()):
    """Return what the model got, by view and example."""
    tables = table(name, folder, *more) + '[[extension]]\nuse = "test/notes"\n'
    names = [f"train.epochs={1}", *overrides]
    carry_out(KINDS[name], tables, overrides=names, name=f"run-{len(list(folder.iterdir()))}")
    return {view: dict(found) for view, found in watching.SEEN.items() if view}


@pytest.mark.parametrize("name", LIKE_OTHERS)
def test_every_model_and_batch_size_sees_the_same(carry_out, tmp_path, name) -> None:
    first = seen(carry_out, name, tmp_path)
    others = ["seeds.init=7", "seeds.noise=8", "train.batch_size=8", "evaluation.batch_size=3"]
    assert seen(carry_out, name, tmp_path, *others) == first
    assert len(first) == len(NAMED.get(name, SEVERE.get(name, [0.2, 0.6])))
    ids = [sorted(found) for found in first.values()]
    assert all(each == ids[0] for each in ids)


@pytest.mark.parametrize("name", ["typos", "feature-noise"])
def test_another_seed_sees_something_else(carry_out, tmp_path, name) -> None:
    first = seen(carry_out, name, tmp_path)
    other = seen(carry_out, name, tmp_path, more=["seed = 1"])
    assert other != first


def built(text, overrides=()):
    """Return a run with its data and model, not trained."""
    made = assemble(plan_recipe(text, overrides, COMPONENTS), Path("unused"))
    return made.run, made.precision


def the_probe(run):
    return next(a.component for a in run.active if a.planned.kind == "probe")


@pytest.mark.parametrize("name", ROWS)
def test_severity_0_is_the_row_itself(tmp_path, name) -> None:
    run, _ = built(RECIPES[KINDS[name]] + table(name, tmp_path))
    probe, data = the_probe(run), run.splits["test"]
    assert isinstance(probe, RowProbe)
    for example in range(len(data)):
        row = data.rows[example]
        if name != "casing":  # it has kinds, and none of them is nothing
            assert probe.disturb(dict(row), 0.0, order.generator(example)) == row
        changed = probe.disturb(dict(row), probe.severities[-1], order.generator(example))
        assert changed.keys() == row.keys()
        assert {k for k in row if row[k] != changed[k]} <= {"text", "features", "image", "audio"}


@pytest.mark.parametrize("name", ["typos", "missing", "casing"])
def test_metrics_are_those_of_an_evaluation_by_hand(tmp_path, name) -> None:
    """Rows changed and encoded one by one, the model run on each alone, accuracy by numpy."""
    run, precision = built(RECIPES[KINDS[name]] + table(name, tmp_path))
    probe, data = the_probe(run), run.splits["test"]
    found = {r.view.name: r.values for r in evaluate(run, "test", precision, batch_size=5)}
    ids = chosen(len(data), 20, 0) or range(len(data))

    def by_hand(change):
        right, answers = [], []
        for example in ids:
            row = change(dict(data.rows[example]), example)
            inputs = run.backbone.collate(run.backbone.encode_rows([row], run.task))
            with torch.no_grad():
                answer = int(run.model(*inputs.values()).argmax())
            answers.append(answer)
            right.append(answer == row["label"])
        return float(np.mean(right)), np.array(answers)

    clean, before = by_hand(lambda row, _: row)
    assert probe.clean.value == pytest.approx(clean)
    seed = order.mix(0, order.name_key(type(probe).__name__))
    for severity in probe.severities:
        accuracy, after = by_hand(
            lambda row, example, s=severity: probe.disturb(
                row, s, order.generator(seed, example, 0)
            )
        )
        view = f"{name}@{severity if isinstance(severity, str) else format(severity, 'g')}"
        assert found[view]["accuracy"] == pytest.approx(accuracy)
        assert found[view]["drop"] == pytest.approx(clean - accuracy)
        assert found[view]["changed"] == pytest.approx((before != after).mean())


def test_the_attack_view_is_what_the_attack_says(tmp_path) -> None:
    run, precision = built(RECIPES["text"] + table("word-substitution", tmp_path))
    results = {r.view.name: r for r in evaluate(run, "test", precision, batch_size=4)}
    probe = the_probe(run)
    for share in (0.3, 1.0):
        values = results[f"word-substitution@{share:g}"].values
        found = [probe.attacked[example] for example in probe.ids]
        right = np.mean([each.right and not each.succeeds(share) for each in found])
        assert values["accuracy"] == pytest.approx(right)
        assert values["accuracy"] <= probe.clean.value
        assert all(each.queries[-1] <= 200 for each in found)
    assert results["word-substitution@1"].values["success-rate"] > 0


SOME_TYPOS = """
from datasets import Dataset
from sft_engine import Split
from sft_engine.feed import transformed
from sft_probes.texts import Typos

rows = Dataset.from_dict({"text": ["The quick brown fox", "jumps over the lazy dog"] * 20})
probe = Typos()
probe.name = "typos"
view = probe.view(0.2, transform=probe._at(0.2))
changed = transformed(Split("test", rows, None), range(40), (view.seed,), [view.transform])
texts = [row["text"] for row in changed]
"""


def test_another_process_changes_alike() -> None:
    here: dict[str, list[str]] = {}
    exec(SOME_TYPOS, here)
    there = subprocess.run(
        [sys.executable, "-c", SOME_TYPOS + "import json; print(json.dumps(texts))"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(there.stdout) == here["texts"]
    assert len(set(here["texts"])) > 30


# --- examples, kinds of tasks, several probes -----------------------------------------------------


def test_the_examples_are_a_subset_that_depends_on_the_seed_alone() -> None:
    assert chosen(10, 0, 0) is None
    assert chosen(10, 10, 0) is None
    one = chosen(1000, 100, 3)
    assert one == chosen(1000, 100, 3) != chosen(1000, 100, 4)
    assert len(set(one)) == 100
    assert one == sorted(one)
    assert set(chosen(1000, 50, 3)) < set(one)


@pytest.mark.parametrize(
    ("task", "label", "number"),
    [
        ("tabular-regression", "number", "moved"),
        ('tabular-classification"\nlabels = "multi"\nseparator = ";', "many", "changed"),
    ],
)
def test_other_kinds_of_tasks(carry_out, report_of, task, label, number) -> None:
    tables = [f'[[probe]]\nuse = "{name}"\n' for name in NUMBERS]
    text = RECIPES["number"].replace("tabular-classification", task)
    text = text.replace('use = "test/numbers"', f'use = "test/numbers"\nlabel = "{label}"')
    watching.RECIPES["other"] = text
    report = report_of(carry_out("other", *tables, overrides=["train.epochs=1"]))
    for name in NUMBERS:
        facts = report["probes"][name]
        assert facts["metric"] == ("mse" if number == "moved" else "f1")
        assert facts[number][0] == 0
        assert any(value > 0 for value in facts[number])
        sign = -1 if number == "moved" else 1
        drops = [sign * (facts["values"][0] - value) for value in facts["values"]]
        assert facts["drop"] == pytest.approx(drops)


def test_a_probe_may_be_there_twice(carry_out, report_of, tmp_path) -> None:
    tables = [table("typos", tmp_path), table("typos", tmp_path, 'layout = "qwertz"')]
    report = report_of(carry_out("text", *tables, overrides=["train.epochs=1"]))
    assert list(report["probes"]) == ["typos", "typos-2"]
    titles = [s["title"] for s in report["sections"] if s["id"].startswith("typos")]
    assert titles == ["Keyboard typos", "Keyboard typos (2)"]


def test_a_severity_of_0_is_the_clean_value_that_is_there_anyway(carry_out, report_of) -> None:
    tables = '[[probe]]\nuse = "typos"\nseverities = [0.0, 0.3]\nexamples = 0\n'
    outcome = carry_out("text", tables, overrides=["train.epochs=1"])
    facts = report_of(outcome)["probes"]["typos"]
    assert facts["severities"] == [0, 0.3]
    assert facts["values"][0] == outcome.metrics["accuracy"]
    assert facts["examples"] == 36


def test_a_probe_changes_nothing_of_the_run(carry_out, tmp_path) -> None:
    bare = carry_out("text", name="bare")
    probed = carry_out("text", *(table(n, tmp_path) for n in ("typos", "word-substitution")))
    assert probed.fingerprint == bare.fingerprint
    assert probed.metrics == bare.metrics


def test_examples_that_are_shown_are_those_the_model_saw(carry_out, report_of, tmp_path) -> None:
    learnt = ["train.epochs=12", "train.batch_size=8"]
    outcome = carry_out("text", table("character-noise", tmp_path, "seed = 3"), overrides=learnt)
    (section,) = [s for s in report_of(outcome)["sections"] if s["id"] == "character-noise"]
    shown = [b for b in section["blocks"] if b["kind"] == "examples"]
    lines = (outcome.folder / "predictions" / "test.jsonl").read_text().splitlines()
    clean = {r["row"]: r for r in map(json.loads, lines)}
    assert shown
    for row in shown[0]["rows"]:
        assert row["before"] == clean[row["row"]]["prediction"]
        assert row["label"] == clean[row["row"]]["label"]
        assert row["before"] != row["after"]
        assert row["text"] != row["text, changed"]
        path = (
            outcome.folder / "predictions" / "test" / f"character-noise@{row['severity']:g}.jsonl"
        )
        views = {r["row"]: r for r in map(json.loads, path.read_text().splitlines())}
        assert row["after"] == views[row["row"]]["prediction"]
    sections.examples("again", shown[0]["columns"], shown[0]["rows"])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tables", "overrides", "sentence"),
    [
        ("text", "typos", ["data.test=0"], None),
        ("text", 'typos"\nsplit = "dev', [], "looks at the split 'dev', and the data has train"),
        ("text", "shift", [], "disturbs 'features', and the split 'test' has"),
        ("number", "typos", [], "disturbs 'text' or 'text_pair', and the split"),
    ],
)
def test_what_cannot_be_probed_is_said_before_training(kind, tables, overrides, sentence) -> None:
    text = RECIPES[kind] + f'[[probe]]\nuse = "{tables}"\n'
    if sentence is None:
        built(text, overrides)  # the source has a test split of its own
        return
    with pytest.raises(RecipeError, match=sentence):
        built(text, overrides)


def test_a_checklist_knows_the_labels(tmp_path, checklist) -> None:
    checklist.write_text(CHECKLIST.replace('label = "a"', 'label = "c"', 1))
    with pytest.raises(RecipeError, match="the label 'c' is none of the task's \\(a, b\\)"):
        built(RECIPES["text"] + table("checklist", tmp_path))
