"""The plugin as the engine finds it: light, complete, with a recipe that is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sft_engine.options import check_options, signature_of
from sft_engine.plugins import load_plugins
from sft_engine.recipe import load_recipe
from sft_probes import DEFAULTS, EXPLANATIONS, PROBES

WHOLE = {"calibration", "selective", "label-noise", "groups"}
"""They look at all of a split, because that costs nothing."""
ENTRIES = [
    entry for entry in load_plugins().catalog.entries() if entry.target.startswith("sft_probes.")
]
OURS = [entry for entry in ENTRIES if entry.kind == "probe"]


def test_everything_is_in_the_catalog() -> None:
    both = [("probe", name) for name in PROBES] + [("explanation", name) for name in EXPLANATIONS]
    assert {(entry.kind, entry.name) for entry in ENTRIES} == set(both)
    assert {name for names in DEFAULTS.values() for name in names} <= set(PROBES)


def test_reading_all_options_imports_nothing_heavy() -> None:
    code = """
import sys
from sft_engine.options import signature_of
from sft_engine.plugins import load_plugins
for entry in load_plugins().catalog.entries():
    if entry.target.startswith("sft_probes."):
        signature_of(entry.target)
assert not {"numpy", "torch", "torchvision", "PIL"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_options_that_all_have(entry) -> None:
    signature = signature_of(entry.target)
    options = {option.name: option for option in signature.options}
    assert options["split"].default == "test"
    if entry.name in WHOLE:
        assert not {"examples", "seed"} & set(options)
        return
    assert {"split", "examples", "seed"} <= set(options)
    assert 0 < options["examples"].default <= 500
    for wrong in ({"examples": -1}, {"seed": -1}):
        assert any(p.key in wrong for p in check_options(signature, wrong, key="", owner="")[1])


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_severities_out_of_range_are_refused(entry) -> None:
    signature = signature_of(entry.target)
    if "severities" not in {option.name for option in signature.options}:
        assert entry.name in {"checklist", "ood", "attributions"} | WHOLE
        return
    for wrong in ([], [-2.0]):
        _, problems = check_options(signature, {"severities": wrong}, key="", owner=entry.name)
        assert any(problem.key.startswith("severities") for problem in problems), wrong


def test_the_example_names_what_there_is() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "example.toml")
    ours = [each for each in recipe.components if each.kind == "probe"]
    assert ours
    for each in ours:
        target = next(entry.target for entry in OURS if entry.name == each.use)
        assert check_options(signature_of(target), each.options, key="", owner=each.use)[1] == []
