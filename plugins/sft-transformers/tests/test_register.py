"""What the plugin tells the engine, and what that costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sft_transformers
from sft_transformers.audio import TransformersAudio
from sft_transformers.backbone import Transformers

HERE = Path(__file__).parents[1]


class Catalog(list):
    def add(self, *entry):
        self.append(entry)


def test_two_backbones_are_offered():
    catalog = Catalog()
    sft_transformers.sft_register(catalog)
    found = {}
    for kind, name, target, summary in catalog:
        module, _, attribute = target.partition(":")
        assert (kind, summary[-1]) == ("backbone", ".")
        found[name] = getattr(importlib.import_module(module), attribute)
    assert found == {"transformers": Transformers, "transformers-audio": TransformersAudio}


def test_registering_and_reading_options_import_nothing_heavy():
    code = (
        "import sys, sft_transformers, sft_transformers.backbone as b; b.Transformers(name='x');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("backbone", [Transformers, TransformersAudio])
def test_every_option_is_documented_and_literal(backbone):
    parameters = inspect.signature(backbone).parameters
    documented = inspect.getdoc(backbone).partition("Args:\n")[2]
    assert all(f"    {name}: " in documented for name in parameters)
    for name, parameter in parameters.items():
        assert name == "name" or ast.literal_eval(repr(parameter.default)) == parameter.default


def test_the_example_uses_options_that_exist():
    with (HERE / "example.toml").open("rb") as file:
        table = tomllib.load(file)["backbone"]
    assert table.pop("use") == "transformers"
    inspect.signature(Transformers).bind(**table)
