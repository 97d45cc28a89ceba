"""What the plugin tells the engine, and what that costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sft_timm
from sft_engine import load_recipe, plan

HERE = Path(__file__).parents[1]
OFFERED = {"timm": "backbone"}


class Catalog(list):
    def add(self, *entry):
        self.append(entry)


def target_of(name):
    catalog = Catalog()
    sft_timm.sft_register(catalog)
    (target,) = (target for _, known, target, _ in catalog if known == name)
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_what_is_offered():
    catalog = Catalog()
    sft_timm.sft_register(catalog)
    assert {name: kind for kind, name, _, _ in catalog} == OFFERED
    assert all(summary.endswith(".") for *_, summary in catalog)


def test_registering_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "timm", "numpy", "datasets", "PIL")
    code = f"import sys, sft_timm; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", OFFERED)
def test_every_option_is_documented_and_literal(name):
    component = target_of(name)
    parameters = inspect.signature(component).parameters
    documented = inspect.getdoc(component).partition("Args:\n")[2]
    assert [option for option in parameters if f"    {option}: " not in documented] == []
    for parameter in parameters.values():
        required = parameter.default is parameter.empty
        assert required or ast.literal_eval(repr(parameter.default)) == parameter.default


@pytest.mark.parametrize("name", [name for name, kind in OFFERED.items() if kind == "backbone"])
def test_backbones_say_that_they_take_images(name):
    assert target_of(name).accepts == {"image"}


def test_the_example_is_a_recipe_of_this_plugin():
    names = {component.name for component in plan(load_recipe(HERE / "example.toml")).components}
    assert names & set(OFFERED)
