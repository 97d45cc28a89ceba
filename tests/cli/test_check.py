"""`check`: what a recipe resolves to, or every problem in it."""

from __future__ import annotations

import json
from pathlib import Path


def test_prints_components_with_their_distributions(sft):
    ended = sft("check", "tiny.toml")
    assert ended.code == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert lines[-1] == "tiny.toml: ok"
    rows = [line.split() for line in lines[:-1]]
    assert ["backbone", "tiny/text", "(sft-tiny", "1.0)"] in rows
    assert [row[0] for row in rows] == ["task", "data", "backbone", "optimizer", "schedule"]


def test_json_is_one_object_with_the_options(sft):
    ended = sft("check", "tiny.toml", "--json", "--set", "optimizer.lr=0.25")
    result = json.loads(ended.out)
    assert result["ok"] is True
    (optimizer,) = [c for c in result["components"] if c["kind"] == "optimizer"]
    assert optimizer["options"]["lr"] == 0.25
    assert (optimizer["name"], optimizer["distribution"]) == ("adamw", "sft-engine")


def test_set_is_accepted_before_and_after_the_recipe(sft):
    for arguments in (
        ["check", "--set", "train.epochs=-1", "tiny.toml", "--set", "train.batch_size=0"],
        ["check", "tiny.toml", "--set", "train.batch_size=0", "--set", "train.epochs=-1"],
    ):
        ended = sft(*arguments)
        assert ended.code == 2
        assert "`train.epochs`: found -1" in ended.err
        assert "`train.batch_size`: found 0" in ended.err


def test_every_problem_is_a_line_with_file_and_line_number(sft):
    text = (
        Path("tiny.toml").read_text().replace("steps", "stepz").replace("tiny/texts", "tiny/text")
    )
    Path("wrong.toml").write_text(text)
    ended = sft("check", "wrong.toml")
    assert ended.code == 2
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: wrong.toml:") for line in lines)
    assert any("did you mean `steps`?" in line for line in lines)


def test_problems_with_json_are_one_object(sft):
    ended = sft("check", "tiny.toml", "--set", "train.stepz=3", "--json")
    assert ended.code == 2
    assert ended.err == ""
    result = json.loads(ended.out)
    assert result["exit_code"] == 2
    assert "did you mean `steps`?" in result["error"]


def test_a_recipe_that_is_not_there_is_looked_for(sft):
    ended = sft("check", "tniy.toml")
    assert ended.code == 2
    assert ended.err.startswith("error: tniy.toml: no such file")
    assert "tiny.toml" in ended.err


def test_writes_nothing(sft, folder):
    sft("check", "tiny.toml")
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]
