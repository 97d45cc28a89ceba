"""What is recorded in training for the diagnosis, and what a user sees of it."""

from __future__ import annotations

import io
import json
from typing import ClassVar

import diagnosis_parts
import ills
import pytest
import torch

from sft_engine import CheckpointError, Interrupted, diagnose, hookimpl
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.console import Console
from sft_engine.diagnosis.vitals import PLACES, POINTS
from sft_engine.testing.runs import TINY, run_recipe

SHORT = ["train.steps=8", "data.train=64", "evaluation.every_steps=4"]


class Meter:
    """Measures all weights by itself."""

    found: ClassVar[dict[int, dict[str, float]]] = {}

    @hookimpl
    def sft_train_start(self, run):
        self.start = self.weights(run)

    def weights(self, run):
        """Return the matrices of each layer group as one vector."""
        named = dict(run.model.named_parameters())
        return {
            group.name: torch.cat(
                [named[n].detach().flatten() for n in group.parameters if named[n].ndim > 1]
            )
            for group in run.layer_groups
        }

    @hookimpl
    def sft_gradients(self, run):
        self.before = self.weights(run)
        named = dict(run.model.named_parameters())
        self.norms = {
            group.name: torch.cat([named[n].grad.flatten() for n in group.parameters]).norm().item()
            for group in run.layer_groups
        }

    @hookimpl
    def sft_step_end(self, run):
        found = {f"grad_norm/{name}": norm for name, norm in self.norms.items()}
        for name, now in self.weights(run).items():
            under = max(self.before[name].norm(), self.start[name].norm())
            found[f"update/{name}"] = ((now - self.before[name]).norm() / under).item()
            found[f"drift/{name}"] = (
                (now - self.start[name]).norm() / self.start[name].norm()
            ).item()
        type(self).found[run.clock.step + 1] = found


METER = {**ills.PARTS, ("extension", "ill/meter"): f"{__name__}:Meter"}


def records(folder, kind=None):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if kind in (None, r["kind"])]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meter") / "run"
    recipe = ills.TEXT.replace("width = 16", "width = 8") + ills.extension("meter")
    run_recipe(folder, recipe, [*SHORT, "train.clip_norm=0.1"], METER)
    return folder


def test_gradients_and_updates_are_those_of_all_weights(measured):
    """Every matrix is small enough to be looked at whole."""
    assert PLACES >= 64 * 8
    found = records(measured, "train")
    assert [r["step"] for r in found] == list(range(1, 9))
    for record in found:
        for key, value in Meter.found[record["step"]].items():
            if not key.startswith("drift"):
                assert record[key] == pytest.approx(value, rel=1e-4, abs=1e-9), key


def test_the_distance_from_the_start_is_that_of_all_weights(measured):
    looks = [r for r in records(measured, "diagnostics") if r["of"] == "validation"]
    assert [look["step"] for look in looks] == [4, 8]
    for look in looks:
        for name, value in look["drift"].items():
            assert value == pytest.approx(Meter.found[look["step"]][f"drift/{name}"], rel=1e-4)


def test_records_hold_the_highest_of_what_lies_between(tmp_path, measured):
    recipe = ills.TEXT.replace("width = 16", "width = 8")
    run_recipe(
        tmp_path / "run", recipe, [*SHORT, "train.clip_norm=0.1", "train.log_every=4"], METER
    )
    each = records(measured, "train")
    found = records(tmp_path / "run", "train")
    assert [r["step"] for r in found] == [2, 4, 6, 8]  # with a checkpoint each epoch
    for record in found:
        window = each[record["step"] - 2 : record["step"]]
        assert record["loss_max"] == pytest.approx(max(r["loss"] for r in window), rel=1e-6)
        assert record["grad_norm_max"] == pytest.approx(
            max(r["grad_norm"] for r in window), rel=1e-6
        )


def test_a_long_run_is_measured_a_hundred_times(tmp_path):
    overrides = [
        "train.steps=230",
        "train.batch_size=4",
        "data.train=32",
        "evaluation.every_epochs=0",
    ]
    run_recipe(tmp_path / "run", ills.TEXT, overrides, ills.PARTS)
    found = [r for r in records(tmp_path / "run", "train") if "update/head" in r]
    assert len(records(tmp_path / "run", "train")) == 230
    assert POINTS / 2 <= len(found) <= POINTS + 1


def test_looking_changes_nothing(tmp_path):
    """The same weights, bit for bit, with dropout and batches of all sizes."""
    noisy = [*SHORT, "backbone.dropout=0.3"]
    one = run_recipe(tmp_path / "one", ills.TEXT, noisy, ills.PARTS)
    none = [*noisy, "evaluation.train_sample=0"]
    other = run_recipe(tmp_path / "other", ills.TEXT, none, ills.PARTS)
    assert one.fingerprint == other.fingerprint
    looks = [r for r in records(tmp_path / "one", "diagnostics") if r["of"] == "validation"]
    assert [look["train"]["examples"] for look in looks] == [64, 64]
    assert all("train" not in r for r in records(tmp_path / "other", "diagnostics"))


@pytest.mark.parametrize(("number", "said"), [(5, ["train-sample 5"]), (0, [])])
def test_the_console_counts_the_training_sample_if_there_is_one(tmp_path, number, said):
    out = io.StringIO()
    overrides = [*SHORT, "train.steps=1", f"evaluation.train_sample={number}"]
    console = Console(stream=out, errors=io.StringIO())
    run_recipe(tmp_path / "run", ills.TEXT, overrides, ills.PARTS, progress=console)
    (line,) = [each for each in out.getvalue().splitlines() if each.startswith("examples: ")]
    sizes = line.removeprefix("examples: ").partition("; 1 steps, ")[0].split(", ")
    assert [size.split()[0] for size in sizes[:2]] == ["train", "validation"]
    assert [size for size in sizes if "sample" in size] == said


def test_the_training_sample_is_evaluated_as_validation_is(tmp_path):
    """With the training split as the validation split, both have the same loss."""
    source = diagnosis_parts.Letters.load

    def same(self):
        splits = source(self)
        return {**splits, "validation": splits["train"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis_parts.Letters, "load", same)
        run_recipe(tmp_path / "run", ills.TEXT, [*SHORT, "backbone.dropout=0.5"], ills.PARTS)
    looks = [r for r in records(tmp_path / "run", "diagnostics") if r["of"] == "validation"]
    for look in looks:
        assert look["train"]["loss"] == pytest.approx(look["loss"], rel=1e-6)


# --- what is said ---------------------------------------------------------------------------------


def test_a_serious_finding_is_said_once_and_not_again_after_a_resume(tmp_path):
    errors = io.StringIO()
    console = Console(stream=io.StringIO(), errors=errors)
    ill = [*SHORT, "train.steps=24", "data.repeat=0.5"]
    recipe = ills.TEXT + ills.extension("lopsided")
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_recipe(folder, recipe, ill, ills.PARTS, progress=console, stop_after=14)
    run_recipe(folder, recipe, ill, ills.PARTS, progress=console, resume=True)
    said = errors.getvalue().splitlines()
    assert sum("serious: leakage (step 0): " in line for line in said) == 1
    assert sum("serious: collapsed-predictions (step" in line for line in said) == 1
    names = [r["name"] for r in records(folder, "finding")]
    assert len(names) == len(set(names))
    assert {"leakage", "collapsed-predictions"} <= set(names)


def test_a_resumed_run_has_the_same_records(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(whole, ills.TEXT, SHORT, ills.PARTS)
    with pytest.raises(Interrupted):
        run_recipe(parts, ills.TEXT, SHORT, ills.PARTS, stop_after=5)
    run_recipe(parts, ills.TEXT, SHORT, ills.PARTS, resume=True)
    one, other = records(whole, "diagnostics"), records(parts, "diagnostics")
    assert one == other


def test_the_report_has_the_findings_that_the_verb_prints(tmp_path, capsys):
    folder = tmp_path / "run"
    run_recipe(folder, ills.TEXT, [*SHORT, "data.repeat=0.5"], ills.PARTS)
    report = json.loads((folder / "report.json").read_text())
    section = next(s for s in report["sections"] if s["id"] == "diagnosis")
    found = diagnose(folder)
    assert section["blocks"] == [{"kind": "findings", "findings": [f.as_json() for f in found]}]
    assert "leakage" in {each.name for each in found if each.level == "serious"}
    assert "leakage" in section["summary"]
    capsys.readouterr()
    assert exit_code_of(cli, ["diagnose", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"] == section["blocks"][0]["findings"]
    assert exit_code_of(cli, ["diagnose", str(folder), "--no-info"]) == 0
    text = capsys.readouterr().out
    assert "serious: leakage, step 0\n" in text
    assert "[data]" in text


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        diagnose(tmp_path)
    (tmp_path / "recipe.toml").write_text("seed = 0")
    with pytest.raises(CheckpointError, match="cannot be read"):
        diagnose(tmp_path)
    assert exit_code_of(cli, ["diagnose", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_run_without_diagnostics_is_judged_by_what_there_is(tmp_path):
    """Records of older versions: no vitals, no look at the data."""
    folder = tmp_path / "run"
    run_recipe(folder, TINY.replace("epochs = 2", "epochs = 3"))
    newer = ("update/", "grad_norm/")
    kept = [
        {name: value for name, value in record.items() if not name.startswith(newer)}
        for record in records(folder)
        if record["kind"] != "diagnostics"
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    assert all(finding.level == "info" for finding in diagnose(folder))


def test_the_anchor_set_must_be_there(tmp_path):
    with pytest.raises(Exception, match="there is no split 'anchor'"):
        run_recipe(tmp_path / "run", TINY + '[[extension]]\nuse = "anchor"\n')
