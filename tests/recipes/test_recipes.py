"""Every recipe in `recipes/` passes `check`, says what to expect, and runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import sft_engine

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
SHORT = ["train.steps=3", "data.subset=96", "data.test=32", "data.validation=32"]
TABLES = ["train.steps=3"]
IMAGES = ["train.steps=3", "data.test=20", "data.subset=48", "train.batch_size=16"]
SMALL = ["backbone.img_size=32", "train.precision=fp32"]
PHASES = [f"phase[{index}].steps=2" for index in range(3)]
OVERRIDES = {
    "iris": TABLES,
    "photo_stamps": [*IMAGES, *SMALL],
    "mnist_efficientnet": [*IMAGES, *SMALL, "data.validation=20"],
    "cifar10_efficientnet": [*IMAGES, *SMALL, "data.validation=20"],
    "resnet50_frozen_head": [*IMAGES, *SMALL],
    "resnet18_frozen_3class": [*IMAGES, *SMALL],
    "resnet50_full": [*IMAGES, *SMALL, "data.validation=20"],
    "pretrain_then_finetune": [*IMAGES[1:], *SMALL, *PHASES, "data.validation=20"],
}
"""What makes a run of a recipe take seconds; `SHORT` for the others, which are about texts."""

MULTILINE = " \\\n"
COMMAND = "#   sft-engine run "


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"bert_sentiment", "bert_tweets", *OVERRIDES}


def commands_of(path: Path) -> list[list[str]]:
    """Return the `sft-engine run` commands of a recipe's header, split as a shell does."""
    text = path.read_text().replace(MULTILINE + "#", "")
    lines = [line[len(COMMAND) :] for line in text.splitlines() if line.startswith(COMMAND)]
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_header_passes_check(path):
    """The commands for full size too: nothing is fetched for that."""
    commands = commands_of(path)
    assert commands
    for name, *rest in commands:
        overrides = [word for word in rest if word != "--set"]
        assert len(rest) == 2 * len(overrides)
        assert sft_engine.plan(sft_engine.load_recipe(FOLDER / Path(name).name, overrides))


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
    overrides = OVERRIDES.get(path.stem, SHORT)
    outcome = sft_engine.run(path, output=tmp_path / "run", overrides=overrides)
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


@pytest.mark.demo
def test_a_table_is_no_image(tmp_path):
    """What the article tries: a table of 4 columns into a ResNet."""
    with pytest.raises(sft_engine.DataError) as caught:
        sft_engine.run(
            FOLDER / "iris.toml",
            output=tmp_path / "run",
            overrides=["backbone.use=timm", "backbone.name=resnet18"],
        )
    assert str(caught.value) == (
        '[backbone] "timm" takes images, the data has a table of 4 columns (sepal_length, sepal_width, '
        "petal_length, petal_width); use backbone `mlp`."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.demo
def test_phases_are_trained_in_turn(tmp_path):
    outcome = sft_engine.run(
        FOLDER / "pretrain_then_finetune.toml",
        output=tmp_path / "run",
        overrides=[*OVERRIDES["pretrain_then_finetune"], "train.log_every=1"],
    )
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert [record["phase"] for record in records] == [
        name for name in ("pretrain", "fine-tune", "joint") for _ in range(2)
    ]
    joint = records[-1]
    assert joint["loss"] == pytest.approx(
        joint["loss/pretrain/task"] + joint["loss/task"], rel=1e-5
    )
