"""Every recipe in `recipes/` passes `check`, says what to expect, and runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sft_engine

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
SHORT = ["train.steps=3", "data.subset=96", "data.test=32", "data.validation=32"]


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {"bert_sentiment.toml", "bert_tweets.toml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_passes_check_and_says_what_to_expect(path):
    plan = sft_engine.plan(sft_engine.load_recipe(path))
    assert plan.one("backbone")
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"sft-engine run recipes/{path.name}" in line for line in header)
    expects = next(line for line in header if line.startswith("# expects:"))
    assert "±" in expects
    assert any("minute" in line for line in header)


@pytest.mark.demo
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(path, tmp_path):
    outcome = sft_engine.run(path, output=tmp_path / "run", overrides=SHORT)
    assert 0 <= outcome.metrics["accuracy"] <= 1
    assert (outcome.folder / "model" / "config.json").exists()


@pytest.mark.demo
def test_the_demo_recipe_takes_any_local_folder(tmp_path):
    """`--set backbone.name=FOLDER`, here the very weights that the name stands for."""
    from sft_demos.weights import minilm

    path = FOLDER / "bert_sentiment.toml"
    named = sft_engine.run(path, output=tmp_path / "named", overrides=SHORT)
    folder = sft_engine.run(
        path, output=tmp_path / "folder", overrides=[*SHORT, f"backbone.name={minilm()}"]
    )
    assert named.fingerprint == folder.fingerprint


@pytest.mark.demo
def test_the_demo_recipe_resumes_bit_for_bit():
    proof = sft_engine.verify_resume(
        FOLDER / "bert_sentiment.toml", overrides=["data.subset=96"], steps=4, interrupt_at=2
    )
    assert proof.equal


@pytest.mark.demo
def test_the_preflight_finds_what_is_known_of_the_reviews(tmp_path):
    outcome = sft_engine.run(
        FOLDER / "bert_sentiment.toml", output=tmp_path / "run", overrides=["train.steps=1"]
    )
    report = json.loads((outcome.folder / "report.json").read_text())
    # 10,603 of the 10,605 texts are unique (shared notes on offline data).
    assert any("repeat the input of another" in f["message"] for f in report["preflight"])
