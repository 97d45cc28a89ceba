"""Whole runs on tables: train, evaluate, predict, resume; and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import sft_engine
from sft_engine import DataError, proof, verbs

RECIPE = """
[task]
use = "tabular-classification"
[data]
use = "csv"
path = "{path}"
columns = {{label = "species"}}
[backbone]
use = "mlp"
hidden = [8]
[train]
precision = "fp32"
device = "cpu"
epochs = 8
batch_size = 8
[optimizer]
use = "adamw"
lr = 0.02
"""
NAMES = ("length", "width", "noise")


@pytest.fixture
def recipe(tmp_path):
    """Two species that one line tells apart, in very different units, as text in a csv file."""
    draw = np.random.default_rng(0)
    table = draw.normal(size=(400, 3)) * [1, 1000, 1] + [0, 5e5, 0]
    species = np.where(table[:, 0] + (table[:, 1] - 5e5) / 1000 > 0, "wide", "narrow")
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "species", "comment"])
        writer.writerows(
            [*row, name, "text"] for row, name in zip(table.tolist(), species, strict=True)
        )
    path = tmp_path / "table.toml"
    path.write_text(RECIPE.format(path=tmp_path / "data.csv"))
    return path


def test_a_table_is_learnt_saved_and_predicted(recipe, tmp_path):
    outcome = sft_engine.run(recipe, output=tmp_path / "run")
    assert outcome.metrics["accuracy"] > 0.9
    written = sft_engine.load_recipe(outcome.folder / "recipe.toml")
    assert written.tables["data"]["columns"] == {"label": "species", "features": list(NAMES)}

    assert verbs.evaluate(outcome.folder) == outcome.metrics

    rows = [
        {"width": "503000", "noise": 0.0, "length": 2.5, "unused": "x"},
        {"features": [-2.5, 497000, 0.0]},
    ]
    records = list(verbs.predict(outcome.folder, rows))
    assert [record["prediction"] for record in records] == ["wide", "narrow"]
    with pytest.raises(
        DataError, match=r"has no 'noise' .* it needs the columns length, width, noise"
    ):
        list(verbs.predict(outcome.folder, [{"length": 1, "width": 2}]))
    with pytest.raises(DataError, match="give one number a column"):
        list(verbs.predict(outcome.folder, ["5.1 3.5"]))


def test_other_data_is_evaluated_by_the_names_of_its_columns(recipe, tmp_path):
    outcome = sft_engine.run(recipe, output=tmp_path / "run", overrides=["train.epochs=2"])
    with (tmp_path / "data.csv").open() as file:
        rows = list(csv.DictReader(file))
    moved = tmp_path / "moved.csv"
    with moved.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["more", "noise", "species", "width", "length"], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows({**row, "more": 1} for row in rows)
    whole = verbs.evaluate(outcome.folder, data=tmp_path / "data.csv")
    assert verbs.evaluate(outcome.folder, data=moved) == whole


def test_columns_may_be_listed_on_the_command_line(recipe, tmp_path):
    outcome = sft_engine.run(
        recipe,
        output=tmp_path / "run",
        overrides=['data.columns.features=["width", "length"]', "train.steps=2"],
    )
    config = json.loads((outcome.folder / "model" / "config.json").read_text())
    assert len(config["mean"]) == 2
    assert config["mean"][0] == pytest.approx(5e5, rel=1e-2)


def test_a_run_on_a_table_resumes_bit_for_bit(recipe):
    assert proof.verify_resume(recipe, steps=4, interrupt_at=2).equal


def test_regression_on_a_table(recipe, tmp_path):
    outcome = sft_engine.run(
        recipe,
        output=tmp_path / "run",
        overrides=["task.use=tabular-regression", "data.columns.label=length", "train.steps=3"],
    )
    assert {"mse", "r2"} <= outcome.metrics.keys()
    written = sft_engine.load_recipe(outcome.folder / "recipe.toml")
    assert written.tables["data"]["columns"]["features"] == ["width", "noise"]


def test_a_table_for_texts_is_refused_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(DataError) as caught:
        sft_engine.run(recipe, output=tmp_path / "run", overrides=["task.use=text-classification"])
    assert str(caught.value) == (
        '[backbone] "mlp" takes a table of numbers, the data has texts; use backbone `transformers`.'
    )
    assert not (tmp_path / "run").exists()


def test_a_wrong_type_of_columns_is_a_sentence(recipe):
    with pytest.raises(sft_engine.RecipeError, match=r"data.columns"):
        sft_engine.plan(sft_engine.load_recipe(recipe, ["data.columns.features=[1, 2]"]))
