"""What the plugin tells the engine, and what that costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import sft_freezing

HERE = Path(__file__).parents[1]


class Catalog(list):
    def add(self, *entry):
        self.append(entry)


def test_what_is_offered():
    catalog = Catalog()
    sft_freezing.sft_register(catalog)
    found = {name: (kind, target) for kind, name, target, _ in catalog}
    assert found["frozen"] == ("freezing", "sft_freezing.frozen:Frozen")
    assert {name for name, (kind, _) in found.items() if kind == "freezing"} == {
        *sft_freezing.SCHEDULES,
        *sft_freezing.ADAPTERS,
    }
    assert {name for name, (kind, _) in found.items() if kind == "extension"} == set(
        sft_freezing.RATES
    )
    for _, target in found.values():
        module, _, attribute = target.partition(":")
        assert inspect.isclass(getattr(importlib.import_module(module), attribute))


def test_registering_and_reading_options_import_nothing_heavy():
    code = (
        "import sys, importlib, sft_freezing as p\n"
        "for target, _ in [*p.SCHEDULES.values(), *p.ADAPTERS.values(), *p.RATES.values()]:\n"
        "    module, _, name = target.partition(':')\n"
        "    options = {'method': 'loha'} if name == 'Peft' else {}\n"
        "    getattr(importlib.import_module('sft_freezing.' + module), name)(**options)\n"
        "print([m for m in ('torch', 'datasets', 'numpy', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_uses_options_that_exist():
    with (HERE / "example.toml").open("rb") as file:
        table = tomllib.load(file)["freezing"]
    module, _, name = sft_freezing.SCHEDULES[table.pop("use")][0].partition(":")
    component = getattr(importlib.import_module(f"sft_freezing.{module}"), name)
    inspect.signature(component).bind(**table)
