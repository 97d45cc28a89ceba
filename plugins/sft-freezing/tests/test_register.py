"""What the plugin tells the engine, and what that costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import sft_freezing
from sft_freezing.frozen import Frozen

HERE = Path(__file__).parents[1]


class Catalog(list):
    def add(self, *entry):
        self.append(entry)


def test_what_is_offered():
    catalog = Catalog()
    sft_freezing.sft_register(catalog)
    found = {name: (kind, target) for kind, name, target, _ in catalog}
    assert found["frozen"] == ("freezing", "sft_freezing.frozen:Frozen")
    for _, target in found.values():
        module, _, attribute = target.partition(":")
        assert inspect.isclass(getattr(importlib.import_module(module), attribute))


def test_registering_and_reading_options_import_nothing_heavy():
    code = (
        "import sys, sft_freezing, sft_freezing.frozen as f; f.Frozen();"
        "print([m for m in ('torch', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_uses_options_that_exist():
    with (HERE / "example.toml").open("rb") as file:
        table = tomllib.load(file)["freezing"]
    assert table.pop("use") == "frozen"
    inspect.signature(Frozen).bind(**table)
