"""Functions that run a recipe with augmentations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sft_engine.testing.runs import run_recipe

sys.path.insert(0, str(Path(__file__).parent))
import observers
from observers import COMPONENTS, RECIPES


@pytest.fixture
def carry_out(tmp_path):
    """Return a function that runs a recipe with tables added and returns the outcome."""

    def run(kind, *tables, overrides=(), name="run", **options):
        observers.SEEN.clear()
        text = RECIPES[kind] + "".join(tables)
        return run_recipe(tmp_path / name, text, overrides, COMPONENTS, **options)

    return run


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Return a function that runs a recipe without additions, once for all tests."""
    kept = {}

    def run(kind, *overrides):
        if (kind, overrides) not in kept:
            observers.SEEN.clear()
            folder = tmp_path_factory.mktemp("plain") / "run"
            text = RECIPES[kind] + '[[extension]]\nuse = "test/notes"\n'
            outcome = run_recipe(folder, text, overrides, COMPONENTS)
            kept[kind, overrides] = outcome, dict(observers.SEEN)
        return kept[kind, overrides]

    return run


@pytest.fixture
def seen(carry_out):
    """Return a function that runs a recipe and returns what the model saw, by epoch and id."""

    def run(kind, *tables, **options):
        carry_out(kind, *tables, '[[extension]]\nuse = "test/notes"\n', **options)
        return dict(observers.SEEN)

    return run
