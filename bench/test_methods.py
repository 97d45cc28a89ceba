"""The comparison of methods: its arithmetic, and that no method is forgotten."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench import methods
from bench.methods_shelf import METHODS
from sft_engine.catalog import plan
from sft_engine.plugins import load_plugins
from sft_engine.recipe import parse_recipe

LEFT_OUT = {
    "paraphrases": "needs a translation model, or a file of paraphrases",
    "feature-noise": "is of tables",
    "swap-noise": "is of tables",
    "class-weights": "is 1 for every class here, where classes are equal",
    "peft": "is a door to many methods; lora and ia3 stand for it",
    "kornia": "does on a GPU what others do here",
    "background-noise": "is of sounds",
    "time-stretch": "is of sounds",
    "pitch-shift": "is of sounds",
    "spec-augment": "is of sounds",
}
PLUGINS = {"sft-augmentations", "sft-freezing", "sft-regularizers", "sft-torchvision"}
KINDS = {"augmentation", "extension", "freezing", "regularizer"}


def test_every_method_of_the_shelf_is_compared_or_left_out_with_a_reason() -> None:
    entries = load_plugins().catalog.entries()
    shelf = {e.name for e in entries if e.distribution in PLUGINS and e.kind in KINDS}
    compared = {
        line.removeprefix("use = ").strip('"')
        for method in METHODS.values()
        for line in method.tables.splitlines()
        if line.startswith("use = ")
    }
    assert compared | set(LEFT_OUT) >= shelf
    assert not compared & set(LEFT_OUT)


@pytest.mark.parametrize("task", methods.BOTH)
def test_every_recipe_passes_check(task: str) -> None:
    installed = methods.plugins()
    for name, method in METHODS.items():
        if task in method.tasks:
            sets = [*methods.COMMON, *methods.OWN[task], *method.sets]
            plan(parse_recipe(methods.recipe_text(task, name), "x.toml", sets), installed)


def test_drift_is_the_length_of_the_way_over_that_of_the_start() -> None:
    start = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0]), "head": torch.ones(9)}
    end = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0]), "head": torch.zeros(9)}
    assert methods.drift(start, end, ["head"]) == pytest.approx(1 / 5)


def test_differences_are_taken_seed_by_seed() -> None:
    plain = {0: 0.5, 1: 0.9, 2: 0.7}
    assert methods.paired({0: 0.6, 1: 1.0, 7: 0.0}, plain) == "+0.100 ± 0.000"
    assert methods.paired({0: 0.6}, plain) == ""


def test_a_table_has_mean_spread_and_options(tmp_path: Path) -> None:
    figures = {"task": "text", "nll": 0.5, "drift": 0.01, "seconds": 20.0}
    results = [
        {**figures, "method": method, "seed": seed, "accuracy": base + seed / 10}
        for method, base in (("plain", 0.5), ("frozen", 0.4))
        for seed in (0, 1)
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in results), encoding="utf-8")
    lines = methods.markdown(methods.results_of(path), "text").splitlines()
    assert lines[2].startswith("| `plain` | 2 | 0.550 ± 0.071 |  | 0.500 | 0.01 | 20.0 |")
    assert lines[3].startswith("| `frozen` | 2 | 0.450 ± 0.071 | -0.100 ± 0.000 |")
    assert lines[3].endswith("| `optimizer.lr=1e-2` |")
    assert len(lines) == 4


def test_one_seed_has_no_spread() -> None:
    assert methods.spread([0.5]).endswith(str(math.nan))
