"""Plugins: pip distributions found by entry point, loaded one by one, a broken one named and passed by.

Installed is not active: what a run dispatches to is `RunHooks`, made of the components its recipe names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sft_engine.dispatch import RunHooks, note_component
from sft_engine.entries import Catalog
from sft_engine.errors import RecipeError
from sft_engine.hook_rules import HOOKS, MODULE_HOOKS, RUN_HOOKS, hooks_of, new_manager, register
from sft_engine.hookspecs import PROJECT
from sft_engine.sentences import closed, suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from pathlib import Path

    import click

    from sft_engine.recipe import Problem, Recipe

__all__ = [
    "HOOKS",
    "RUN_HOOKS",
    "Broken",
    "Loaded",
    "Plugins",
    "RunHooks",
    "load_plugins",
    "note_component",
]

GROUP = PROJECT
ENGINE = "sft-engine"
SELECT = "SFT_ENGINE_PLUGINS"
"""Environment variable: entry points or distributions to load, with commas; empty loads none."""


@dataclass(frozen=True)
class Loaded:
    """A plugin that was loaded: entry point, distribution and its version, the hooks it has."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]
    plugin: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Broken:
    """An installed plugin that could not be loaded, and why."""

    name: str
    distribution: str
    version: str
    error: Exception

    def __str__(self) -> str:
        cause = f"{type(self.error).__name__}: {self.error}"
        return f"{self.distribution} {self.version} cannot be loaded ({cause})"


class Plugins:
    """The plugins of this installation; nothing in here is active in a run."""

    def __init__(self) -> None:
        self.manager = new_manager()
        self.catalog = Catalog()
        self.loaded: tuple[Loaded, ...] = ()
        self.broken: tuple[Broken, ...] = ()

    def add(self, plugin: Any, name: str, distribution: str, version: str) -> None:
        """Register a plugin and its components.

        Raises:
            RecipeError: it misspells a hook, or adds a name that another plugin has.
        """
        owner = f'the plugin "{name}" of {distribution} {version}'
        hooks = hooks_of(plugin, MODULE_HOOKS, owner)
        register(self.manager, plugin, name, owner)
        others = [p for p in self.manager.get_plugins() if p is not plugin]
        additions = Catalog(distribution, version)
        try:
            self.manager.subset_hook_caller("sft_register", others)(catalog=additions)
            self.catalog.merge(additions)
        except Exception:
            self.manager.unregister(plugin)
            raise
        self.loaded += (Loaded(name, distribution, version, tuple(hooks), plugin),)

    def add_entry_point(self, point: EntryPoint) -> None:
        """Load an entry point; one that fails is remembered as broken."""
        distribution, version = _owner(point)
        try:
            self.add(point.load(), point.name, distribution, version)
        except RecipeError:
            raise
        except Exception as error:  # noqa: BLE001  one broken package must not stop the others
            self.broken += (Broken(point.name, distribution, version, error),)

    def check_recipe(self, recipe: Recipe, distributions: Iterable[str]) -> list[Problem]:
        """Ask the plugins of these distributions for problems between components."""
        asked = set(distributions)
        others = [p.plugin for p in self.loaded if p.distribution not in asked]
        caller = self.manager.subset_hook_caller("sft_check_recipe", others)
        answers = reversed(caller(recipe=recipe))  # pluggy asks the last one first
        return [problem for answer in answers for problem in answer]

    def report_study(
        self,
        distributions: Iterable[str],
        folder: Path,
        study: Mapping[str, Any],
        report: dict[str, Any],
    ) -> None:
        """Let the plugins of these distributions add sections to the report of a study."""
        asked = set(distributions)
        others = [p.plugin for p in self.loaded if p.distribution not in asked]
        caller = self.manager.subset_hook_caller("sft_study_report", others)
        caller(folder=folder, study=study, report=report)

    def add_commands(self, group: click.Group) -> None:
        """Let every plugin add its verbs to the click group."""
        self.manager.hook.sft_cli(group=group)


def load_plugins() -> Plugins:
    """Load the engine's own components, then every installed plugin, in the order of their names.

    Raises:
        RecipeError: a plugin misspells a hook, two plugins offer one name, or `SFT_ENGINE_PLUGINS`
            names a plugin that is not installed.
    """
    plugins = Plugins()
    builtin = importlib.import_module("sft_engine.builtin")
    plugins.add(builtin, "builtin", ENGINE, _engine_version())
    for point in _selected(_entry_points(), os.environ.get(SELECT)):
        plugins.add_entry_point(point)
    return plugins


def _entry_points() -> list[EntryPoint]:
    points = importlib.metadata.entry_points(group=GROUP)
    return sorted(points, key=lambda point: (_owner(point)[0], point.name))


def _selected(points: list[EntryPoint], selection: str | None) -> list[EntryPoint]:
    if selection is None:
        return points
    wanted = [name.strip() for name in selection.split(",") if name.strip()]
    known = {point.name for point in points} | {_owner(point)[0] for point in points}
    for name in wanted:
        if name not in known:
            near = suggest(name, known) or "`sft-engine plugins` lists them"
            raise RecipeError(
                closed(f'{SELECT}: found "{name}", which is no installed plugin; {near}')
            )
    return [p for p in points if p.name in wanted or _owner(p)[0] in wanted]


def _owner(point: EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return point.value, "?"
    return point.dist.name, point.dist.version


def _engine_version() -> str:
    try:
        return importlib.metadata.version(ENGINE)
    except importlib.metadata.PackageNotFoundError:  # run from a source folder on sys.path
        return "(source)"
