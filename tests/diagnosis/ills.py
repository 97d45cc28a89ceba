"""Runs that were made ill on purpose, and healthy ones; `python tests/diagnosis/ills.py` prints the table.

usage: python tests/diagnosis/ills.py [--healthy] [NAME ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `diagnosis_parts`

from sft_engine import DivergedError
from sft_engine.diagnosis import Finding, findings_of, read_evidence
from sft_engine.testing.runs import run_recipe

PARTS = {
    ("data", "ill/letters"): "diagnosis_parts:Letters",
    ("data", "ill/numbers"): "diagnosis_parts:Numbers",
    **{
        ("extension", f"ill/{name}"): f"diagnosis_parts:{target}"
        for name, target in {
            "frozen-head": "FrozenHead",
            "no-gradient": "NoGradient",
            "kick": "Kick",
            "zeros": "Zeros",
            "growth": "Growth",
            "lopsided": "Lopsided",
            "skips": "Skips",
            "poison": "Poison",
            "swings": "Swings",
        }.items()
    },
}

TEXT = """
seed = 0
[task]
use = "text-classification"
[data]
use = "ill/letters"
[backbone]
use = "tiny/text"
width = 16
[optimizer]
use = "adamw"
lr = 0.01
[train]
precision = "fp32"
device = "cpu"
batch_size = 32
epochs = 15
log_every = 1
[evaluation]
page = false
"""
PICTURES = (
    TEXT.replace("text-classification", "image-classification")
    .replace(
        'use = "ill/letters"', 'use = "tiny/pictures"\nexamples = 240\nvalidation = 60\ntest = 60'
    )
    .replace('"tiny/text"\nwidth = 16', '"tiny/image"')
    .replace("epochs = 15", "epochs = 6")
)
TABLE = (
    TEXT.replace("text-classification", "tabular-classification")
    .replace('use = "ill/letters"', 'use = "ill/numbers"\nvalidation = 80\ntest = 80')
    .replace('"tiny/text"\nwidth = 16', '"mlp"')
)
SUM = TABLE.replace("tabular-classification", "tabular-regression").replace(
    'use = "ill/numbers"', 'use = "ill/numbers"\nclasses = 0'
)


@dataclass(frozen=True)
class Ill:
    """A run with an illness.

    Args:
        finding: What must be found.
        change: Overrides of the recipe.
        extra: Tables that are added to it.
        recipe: What is changed.
        fails: Whether training diverges.
        again: It begins from the weights of a healthy run on the same texts.
    """

    finding: str
    change: Sequence[str] = ()
    extra: str = ""
    recipe: str = TEXT
    fails: bool = False
    again: bool = False


def extension(name: str, options: str = "") -> str:
    return f'[[extension]]\nuse = "ill/{name}"\n{options}\n'


ILLS = {
    "learning rate 100 times too high": Ill("learning-rate-too-high", ["optimizer.lr=1.0"]),
    "learning rate 1000 times too low": Ill("learning-rate-too-low", ["optimizer.lr=1e-5"]),
    "30 % of the labels are wrong": Ill(
        "label-noise",
        ["data.flip=0.3", "data.train=800", "data.held_out=300", "train.epochs=8"],
    ),
    "8 rows, 60 epochs": Ill("overfitting", ["data.train=8", "train.epochs=60"]),
    "97 % of one class": Ill(
        "class-neglect", ["data.largest=0.97", "data.held_out=200", "train.epochs=4"]
    ),
    "the head is frozen": Ill("dead-head", extra=extension("frozen-head")),
    "no gradient for the head": Ill("dead-head", extra=extension("no-gradient")),
    "held-out rows are in training": Ill("leakage", ["data.repeat=0.3", "train.epochs=4"]),
    "... with another beginning": Ill(
        "leakage", ["data.repeat=0.3", "data.edit=true", "data.longest=90", "train.epochs=4"]
    ),
    "the label stands in the text": Ill("label-in-input", ["data.reveal=true", "train.epochs=4"]),
    "a spike, without warm-up": Ill(
        "loss-spikes", ["schedule.use=constant"], extension("kick")
    ),
    "all weights begin at zero": Ill("constant-outputs", extra=extension("zeros")),
    "weights explode": Ill("exploding-weights", extra=extension("growth")),
    "all inputs are the same": Ill("constant-inputs", ["data.constant=true", "train.epochs=4"]),
    "labels are drawn by lot": Ill("underfitting", ["data.flip=0.5", "train.epochs=4"]),
    "validation swings": Ill(
        "oscillating-validation", ["train.epochs=12"], extension("swings")
    ),
    "the head leans to one class": Ill("collapsed-predictions", extra=extension("lopsided")),
    "every fourth step is skipped": Ill("judged-steps", extra=extension("skips")),
    "another task on the same texts": Ill(
        "forgetting",
        ["data.shift=2", 'data.splits={anchor = "anchor"}'],
        '[[extension]]\nuse = "anchor"\n',
        again=True,
    ),
    "a gradient is NaN": Ill("not-finite", extra=extension("poison"), fails=True),
}  # fmt: skip

HEALTHY = {
    "texts of two classes": (TEXT, ["data.train=384"]),
    "texts of four classes": (TEXT, ["data.classes=4", "data.train=512", "train.epochs=12"]),
    "pictures": (PICTURES, []),
    "table, three classes": (TABLE, ["train.epochs=10"]),
    "table, a number": (SUM, ["train.epochs=10"]),
}
SEEDS = range(4)


def diagnosed(
    folder: Path, recipe: str, change: Sequence[str] = (), extra: str = "", *, fails: bool = False
) -> list[Finding]:
    """Train by a recipe and return what is found in its folder."""
    try:
        run_recipe(folder, recipe + extra, change, PARTS)
        assert not fails
    except DivergedError:
        assert fails
    return findings_of(read_evidence(folder))


def cured(folder: Path, ill: Ill) -> list[Finding]:
    """Train an ill recipe."""
    change = list(ill.change)
    if ill.again:
        before = folder.with_name(f"{folder.name}-before")
        diagnosed(before, ill.recipe)
        change.append(f"backbone.name={before / 'model'}")
    return diagnosed(folder, ill.recipe, change, ill.extra, fails=ill.fails)


def seeded(name: str, seed: int) -> list[str]:
    """Return the changes of a healthy recipe with a seed for its data and another for its weights."""
    return [*HEALTHY[name][1], f"data.seed={seed}", f"seed={seed + 100}"]


def main(names: Sequence[str]) -> None:
    """Print the table."""
    wanted = [name for name in names if not name.startswith("-")]
    with tempfile.TemporaryDirectory() as place:
        if "--healthy" not in names:
            _ills(Path(place), wanted)
        if not wanted:
            _healthy(Path(place))


def _ills(place: Path, wanted: Sequence[str]) -> None:
    print("| illness | looked for | found | other findings |\n|---|---|---|---|")
    for number, (name, ill) in enumerate(ILLS.items()):
        if wanted and not any(each in name for each in wanted):
            continue
        found = cured(place / f"ill-{number}", ill)
        own = next((each for each in found if each.name == ill.finding), None)
        others = ", ".join(f"{each.name} ({each.level})" for each in found if each is not own)
        said = f"{own.level}, step {own.step}" if own else "**missed**"
        print(f"| {name} | {ill.finding} | {said} | {others} |", flush=True)
        if wanted:
            for each in found:
                print("   ", each.level, each.line())


def _healthy(place: Path) -> None:
    print("\n| healthy | runs | false alarms | notes |\n|---|---|---|---|")
    for number, (name, (recipe, _)) in enumerate(HEALTHY.items()):
        alarms, notes = [], []
        for seed in SEEDS:
            for each in diagnosed(place / f"{number}-{seed}", recipe, seeded(name, seed)):
                if each.level == "info":
                    notes.append(each.name)
                else:
                    alarms.append(f"{each.level} seed {seed} {each.line()}")
        noted = ", ".join(f"{each} {notes.count(each)}" for each in dict.fromkeys(notes))
        print(f"| {name} | {len(SEEDS)} | {'; '.join(alarms) or 'none'} | {noted} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
