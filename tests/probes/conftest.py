"""Functions that run a recipe with probes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sft_engine.testing import runs
from sft_engine.testing.runs import run_recipe, tiny_plugins

sys.path.insert(0, str(Path(__file__).parent))
import watching
from watching import COMPONENTS, RECIPES


@pytest.fixture
def carry_out(tmp_path):
    """Return a function that runs a recipe with tables added and returns the outcome."""

    def run(kind, *tables, overrides=(), name="run", **options):
        watching.SEEN.clear()
        text = RECIPES[kind] + "".join(tables)
        return run_recipe(tmp_path / name, text, overrides, COMPONENTS, **options)

    return run


@pytest.fixture
def tiny_catalog(monkeypatch):
    """Let verbs find the components of these tests."""
    load = runs.load_plugins
    monkeypatch.setattr("sft_engine.plugins.load_plugins", lambda: _with_tiny(load))


def _with_tiny(load):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load_plugins", load)
        return tiny_plugins(COMPONENTS)


@pytest.fixture
def report_of():
    """Return a function that reads the report of an outcome."""
    return lambda outcome: json.loads((outcome.folder / "report.json").read_text())
