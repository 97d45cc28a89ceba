"""The plugin as the engine finds it: light, complete, with a recipe that is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sft_augmentations import AUGMENTATIONS, EXTENSIONS
from sft_engine.options import check_options, signature_of
from sft_engine.plugins import load_plugins
from sft_engine.recipe import load_recipe

OURS = [
    entry
    for entry in load_plugins().catalog.entries()
    if entry.target.startswith("sft_augmentations.")
]


def test_everything_is_in_the_catalog() -> None:
    found = {(entry.kind, entry.name) for entry in OURS}
    assert found == {("augmentation", name) for name in AUGMENTATIONS} | {
        ("extension", name) for name in EXTENSIONS
    }


def test_reading_all_options_imports_nothing_heavy() -> None:
    code = """
import sys
from sft_engine.options import signature_of
from sft_engine.plugins import load_plugins
for entry in load_plugins().catalog.entries():
    if entry.target.startswith("sft_augmentations."):
        signature_of(entry.target)
assert not {"numpy", "torch", "torchvision", "PIL"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_options_out_of_range_are_refused(entry) -> None:
    signature = signature_of(entry.target)
    for option in signature.options:
        if option.name in ("rate", "share", "until", "alpha", "tau", "gamma", "power", "strength"):
            _, problems = check_options(signature, {option.name: -0.1}, key="", owner=entry.name)
            assert any(problem.key == option.name for problem in problems)


@pytest.mark.parametrize(
    "entry",
    [entry for entry in load_plugins().catalog.entries() if entry.kind == "augmentation"],
    ids=lambda entry: entry.name,
)
def test_every_augmentation_can_be_switched_off_near_the_end(entry) -> None:
    """Those of other installed packages too."""
    (until,) = [o for o in signature_of(entry.target).options if o.name == "until"]
    assert until.default == 1.0
    assert "Off" in until.help


def test_the_example_names_what_there_is() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "example.toml")
    ours = [each for each in recipe.components if each.kind == "augmentation"]
    assert ours
    for each in ours:
        target = next(entry.target for entry in OURS if entry.name == each.use)
        assert check_options(signature_of(target), each.options, key="", owner=each.use)[1] == []
