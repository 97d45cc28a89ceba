"""`groups`: layer groups, learning rates and the timetable, without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FREEZING = """
[optimizer]
use = "adamw"
lr = 0.01
[freezing]
use = "gradual-unfreezing"
until = 0.5
[[extension]]
use = "layer-decay"
decay = 0.5
head = 10.0
"""
SIZES = {"embeddings": 512, "block.0": 72, "block.1": 72, "head": 34}
"""64 letters x 8; twice 8 x 8 + 8; norm 8 + 8 and 2 x 8 + 2."""


@pytest.fixture(autouse=True)
def _recipe(folder):
    text = Path("tiny.toml").read_text().replace("steps = 3", "epochs = 4")
    Path("frozen.toml").write_text(text + FREEZING)


def test_prints_groups_rates_and_stages(sft):
    """Twelve steps: a thaw at each sixth of them, up to half of the run."""
    ended = sft("groups", "frozen.toml")
    assert ended.code == 0, ended.err
    first, second = (part.splitlines() for part in ended.out.split("\n\n"))
    assert [line.split() for line in first] == [
        "layer group parameters lr trains in steps".split(),
        "embeddings 512 0.00125 6 to 11".split(),
        "block.0 72 0.0025 4 to 11".split(),
        "block.1 72 0.005 2 to 11".split(),
        "head 34 0.1 0 to 11".split(),
        "690 parameters in 4 layer groups, 12 steps".split(),
    ]
    assert [line.split() for line in second] == [
        "from step epoch phase parameters what trains".split(),
        "0 0 train 34 head".split(),
        "2 0.6667 train 106 block.1, head".split(),
        "4 1.333 train 178 block.0 … head".split(),
        "6 2 train 690 everything".split(),
    ]


def test_writes_nothing(sft):
    before = sorted(Path().rglob("*"))
    assert sft("groups", "frozen.toml").code == 0
    assert sorted(Path().rglob("*")) == before


def test_json_has_the_same(sft):
    ended = sft("groups", "frozen.toml", "--json", "--set", "freezing.until=0.25")
    found = json.loads(ended.out)
    assert (found["recipe"], found["steps"]) == ("frozen.toml", 12)
    assert {g["name"]: g["parameters"] for g in found["groups"]} == SIZES
    assert [g["lr"] for g in found["groups"]] == pytest.approx([0.00125, 0.0025, 0.005, 0.1])
    assert [g["trains"] for g in found["groups"]] == [[[3, 12]], [[2, 12]], [[1, 12]], [[0, 12]]]
    assert [s["step"] for s in found["stages"]] == [0, 1, 2, 3]
    assert found["stages"][1]["groups"] == ["block.1", "head"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("use=chain-thaw", [[[2, 5], [10, 12]], [[5, 7], [10, 12]], [[7, 12]], [[0, 2], [10, 12]]]),
        ("use=progressive-freezing", [[[0, 6]], [[0, 8]], [[0, 10]], [[0, 12]]]),
        ("use=frozen", [[], [], [], [[0, 12]]]),
    ],
)
def test_timetables_of_other_schedules(sft, options, expected):
    found = json.loads(sft("groups", "frozen.toml", "--json", "--set", f"freezing.{options}").out)
    assert [g["trains"] for g in found["groups"]] == expected


def test_without_freezing_everything_trains(sft):
    ended = sft("groups", "tiny.toml")
    assert ended.out.splitlines()[-1].split() == "0 0 train 690 everything".split()


def test_phases_and_frozen_parts_of_a_group(sft):
    """A pattern may freeze biases alone; phases have rates of their own."""
    text = Path("tiny.toml").read_text()
    text += '[freezing]\nuse = "frozen"\npatterns = ["blocks.*.bias"]\nphases = ["some"]\n'
    text += '[[phase]]\nname = "some"\nsteps = 4\n[[phase]]\nname = "all"\nsteps = 5\nlr = 1e-5\n'
    Path("phases.toml").write_text(text)
    out = sft("groups", "phases.toml").out
    assert "in phase all `lr` is 1e-05; the layer groups keep their ratio" in out
    assert [line.split() for line in out.splitlines()[-2:]] == [
        "0 0 some 674 everything".split(),
        "4 2 all 690 everything".split(),
    ]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["freezing.until=2"], "`freezing.until`: found 2"),
        (["freezing.use=surgical", "freezing.train=blok"], '"blok" matches no layer group'),
    ],
)
def test_a_mistake_is_one_sentence(sft, overrides, sentence):
    ended = sft("groups", "frozen.toml", *(part for each in overrides for part in ("--set", each)))
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert sentence in line
