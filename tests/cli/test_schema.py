"""`schema`: what an editor completes with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_prints_the_schema_with_every_component(sft):
    ended = sft("schema")
    assert ended.code == 0
    schema = json.loads(ended.out)
    names = [
        each["properties"]["use"]["const"] for each in schema["properties"]["data"]["oneOf"][:-1]
    ]
    assert {"csv", "tiny/texts"} <= set(names)


def test_writes_the_same_to_a_file(sft):
    ended = sft("schema", "--output", "recipe.schema.json")
    assert (ended.code, ended.out) == (0, "")
    assert Path("recipe.schema.json").read_text() == sft("schema").out


@pytest.mark.parametrize("target", ["absent/s.json", "tiny.toml/s.json"])
def test_a_file_that_cannot_be_written(sft, target, folder):
    ended = sft("schema", "--output", target)
    assert ended.code == 1
    assert ended.err.startswith(f"error: {target} cannot be written: ")
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]
