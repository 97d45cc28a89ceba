"""Run a recipe in a test, with components that live in the test itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sft_engine.catalog import Catalog, plan
from sft_engine.hookspecs import hookimpl
from sft_engine.plugins import Plugins, load_plugins
from sft_engine.recipe import parse_recipe

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.training import Outcome

TINY = """
[task]
use = "text-classification"
[data]
use = "tiny/texts"
validation = 8
test = 8
[backbone]
use = "tiny/text"
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
epochs = 2
log_every = 1
"""
"""A recipe that needs nothing but the engine: 48 training examples, three steps an epoch."""


def tiny_plugins(components: Mapping[tuple[str, str], str] | None = None) -> Plugins:
    """Return the installed plugins, the tiny components and, by kind and name, those of a test.

    Args:
        components: Targets such as `{("regularizer", "test/pull"): "test_module:Pull"}`.
    """

    @hookimpl
    def sft_register(catalog: Catalog) -> None:
        catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
        catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "Tiny network.")
        images = "sft_engine.testing.tiny_images"
        catalog.add("data", "tiny/pictures", f"{images}:TinyPictures", "Noise with a bright half.")
        catalog.add("backbone", "tiny/image", f"{images}:TinyImage", "Tiny convolutions.")
        for (kind, name), target in (components or {}).items():
            catalog.add(kind, name, target, "A component of a test.")

    plugin = ModuleType("tiny")
    plugin.sft_register = sft_register  # type: ignore[attr-defined]
    plugins = load_plugins()
    plugins.add(plugin, "tiny", "sft-engine-testing", "0")
    return plugins


def plan_recipe(
    text: str = TINY,
    overrides: Sequence[str] = (),
    components: Mapping[tuple[str, str], str] | None = None,
) -> Plan:
    """Check a recipe given as text against `tiny_plugins`; it writes no page unless told to."""
    sets = ["evaluation.page=false", *overrides]  # the page would take longer than a tiny run
    return plan(parse_recipe(text, "recipe.toml", sets), tiny_plugins(components))


def run_recipe(
    folder: Path,
    text: str = TINY,
    overrides: Sequence[str] = (),
    components: Mapping[tuple[str, str], str] | None = None,
    **options: Any,
) -> Outcome:
    """Train by a recipe given as text; `options` go to `sft_engine.training.train`."""
    from sft_engine.training import train

    return train(plan_recipe(text, overrides, components), folder, **options)
