"""The catalog of installed components, and the plan: a recipe resolved against it, nothing built.

`plan` is where typos end. It imports no component whose options can be read from its source.
"""

from __future__ import annotations

import enum
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.components import KINDS
from sft_engine.drafts import PHASE, STREAM
from sft_engine.entries import Catalog, Entry
from sft_engine.errors import RecipeError, SftError
from sft_engine.options import check_options
from sft_engine.phase_tables import plan_parts
from sft_engine.recipe import (
    DATA_KEYS,
    DEFAULT_USE,
    STREAM_KEYS,
    ComponentRef,
    Problem,
    Recipe,
    dump_tables,
    parse_recipe,
)
from sft_engine.sentences import choices, closed, suggest
from sft_engine.settings import (
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    PhaseSettings,
    SeedSettings,
    StreamSettings,
    TrainSettings,
)
from sft_engine.signatures import Signature, signature_of

if TYPE_CHECKING:
    from sft_engine.plugins import Plugins

__all__ = ["Catalog", "Entry", "Plan", "Planned", "plan"]

REQUIRED = ("task", "data", "backbone")
DEFAULTS = (
    ComponentRef("optimizer", DEFAULT_USE["optimizer"], {}, "optimizer"),
    ComponentRef("schedule", DEFAULT_USE["schedule"], {"warmup": 0.1}, "schedule"),
)
"""What the field recommends for a recipe that does not say."""

HOMES = {
    "backbone": ("sft-transformers", "sft-timm", "sft-torchvision"),
    "data": ("sft-demos",),
    "weights": ("sft-demos",),
    "freezing": ("sft-freezing",),
    "regularizer": ("sft-regularizers",),
    "augmentation": ("sft-augmentations",),
    "probe": ("sft-probes",),
    "explanation": ("sft-probes",),
}
"""Distributions of this project that offer most components of a kind: a hint and nothing more."""

_SCHEME = re.compile(r"([a-z][a-z0-9-]+):(?![/\\])")
_LIBRARY_SCHEMES = ("hf-hub", "local-dir")  # timm's own; not ours to resolve


@dataclass(frozen=True)
class Planned:
    """A component with checked options, not imported yet.

    Args:
        key: Where it stands in the recipe: `optimizer`, `regularizer[0]`.
        entry: What the catalog knows of it.
        options: Constructor options, defaults included.
        line: Of its table; 0 if the recipe does not have it.
        where: File and line, for messages.
    """

    key: str
    entry: Entry
    options: Mapping[str, Any]
    line: int = 0
    where: str = ""

    @property
    def kind(self) -> str:
        """Such as `optimizer`; `stream` for data that a `[[stream]]` names."""
        return STREAM if self.key.startswith(f"{STREAM}[") else self.entry.kind

    @property
    def name(self) -> str:
        """Such as `adamw`."""
        return self.entry.name

    def __str__(self) -> str:
        return f'{self.key} "{self.name}" of {self.entry.owner}'

    @property
    def _label(self) -> str:
        return f"{self.where}: {self}" if self.where else str(self)

    def load(self) -> Any:
        """Import the component's class.

        Raises:
            RecipeError: it cannot be imported; names component, distribution, version and cause.
        """
        return _load(self.entry, self._label)

    def build(self) -> Any:
        """Construct the component with its options.

        Raises:
            RecipeError: it cannot be imported, or its constructor refuses the options.
        """
        made = self.load()
        try:
            return made(**self.options)
        except SftError:
            raise
        except ValueError as error:
            raise RecipeError(f"{self._label}: {closed(str(error))}") from error
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise RecipeError(f"{self._label}: cannot be built: {closed(cause)}") from error


@dataclass(frozen=True)
class Plan:
    """A recipe whose names and options are all known to be right.

    Args:
        recipe: As it was read.
        seeds: `seed` and `[seeds]`.
        train: `[train]`.
        data: The engine's part of `[data]`.
        evaluation: `[evaluation]`.
        checkpoint: `[checkpoint]`.
        components: In the order of the recipe, then the defaults for kinds it does not name.
        catalog: All that is installed.
        streams: The engine's part of each `[[stream]]`.
        phases: Each `[[phase]]`; none for a recipe without phases.
    """

    recipe: Recipe
    seeds: SeedSettings
    train: TrainSettings
    data: DataSettings
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    components: tuple[Planned, ...]
    catalog: Catalog = field(repr=False, compare=False)
    streams: tuple[StreamSettings, ...] = ()
    phases: tuple[PhaseSettings, ...] = ()

    def one(self, kind: str) -> Planned | None:
        """Return the component of a kind that a recipe has once, or None."""
        return next(iter(self.all(kind)), None)

    def all(self, kind: str) -> tuple[Planned, ...]:
        """Return the components of a kind in the order of the recipe."""
        return tuple(c for c in self.components if c.kind == kind)

    def resolved(self) -> Recipe:
        """Return the recipe with every option written out, defaults included, for the run folder."""
        tables: dict[str, Any] = {}
        for planned in self.components:
            table = {"use": planned.name, **_written(planned.options)}
            if planned.kind == STREAM:
                table = self._stream_table(len(tables.get(STREAM, ())), table)
            if planned.key == planned.kind:
                tables[planned.kind] = table
            else:
                tables.setdefault(planned.kind, []).append(table)
        tables["data"] |= _written(_asdict(self.data))
        for key in ("train", "evaluation", "checkpoint"):
            tables[key] = _written(_asdict(getattr(self, key)))
        if self.phases:
            tables[PHASE] = [_written(_asdict(phase)) for phase in self.phases]
        seeds = _written(_asdict(self.seeds))
        tables |= {"seed": seeds.pop("seed"), "seeds": seeds}
        return parse_recipe(dump_tables(tables), self.recipe.name)

    def _stream_table(self, index: int, table: dict[str, Any]) -> dict[str, Any]:
        """Add the engine's keys; options of the same name go to `data`."""
        own = {"data": {key: table[key] for key in table if key in STREAM_KEYS}}
        return table | _written(_asdict(self.streams[index])) | own

    def resolve(self, name: str) -> str:
        """Turn a name of weights into a local folder, fetching it if need be, or return it unchanged.

        Raises:
            RecipeError: the name has a prefix such as `demo:` and no plugin offers it.
        """
        entry = self.catalog.get("weights", name)
        if entry:
            return str(_load(entry, f'the weights "{name}" of {entry.owner}')())
        scheme = _SCHEME.match(name)
        if not scheme or scheme[1] in _LIBRARY_SCHEMES or Path(name).exists():
            return name
        known = [e.name for e in self.catalog.entries("weights")]
        hint = suggest(name, known) or choices(known) or _home("weights")
        message = f'found "{name}", which no installed plugin offers'
        raise self.recipe.error([Problem("backbone.name", message, hint)])


def plan(recipe: Recipe, plugins: Plugins | None = None) -> Plan:
    """Resolve every name of a recipe and check every option; nothing is built or written.

    Raises:
        RecipeError: lists every problem, each with file, line and key.
    """
    if plugins is None:
        from sft_engine.plugins import load_plugins

        plugins = load_plugins()
    problems = [*_missing_kinds(recipe)]
    components = []
    for ref in (*recipe.components, *_defaults(recipe)):
        planned, found = _plan_component(recipe, ref, plugins)
        problems += found
        components += [planned] if planned else []
    settings, found = _plan_settings(recipe)
    parts, wrong = plan_parts(recipe)
    if problems + found + wrong:
        raise recipe.error(problems + found + wrong)
    made = Plan(
        recipe=recipe,
        components=tuple(components),
        catalog=plugins.catalog,
        streams=parts.streams,
        phases=parts.phases,
        **settings,
    )
    owners = {planned.entry.distribution for planned in components}
    # Every default written out: what does not go together may be what nobody wrote.
    if between := plugins.check_recipe(made.resolved(), owners):
        raise recipe.error(between)
    return made


def _missing_kinds(recipe: Recipe) -> Iterable[Problem]:
    for kind in REQUIRED:
        if kind not in recipe.tables:
            yield Problem(kind, f"a recipe needs this table, `[{kind}]`: {KINDS[kind]}")


def _defaults(recipe: Recipe) -> list[ComponentRef]:
    return [ref for ref in DEFAULTS if ref.kind not in recipe.tables]


def _plan_component(
    recipe: Recipe, ref: ComponentRef, plugins: Plugins
) -> tuple[Planned | None, list[Problem]]:
    kind = _kind_of(ref)
    entry = plugins.catalog.get(kind, ref.use)
    if entry is None:
        return None, [_unknown_name(ref, plugins)]
    where = str(recipe.origin(ref.key))
    signature = _signature(entry, f'{where}: {ref.key} "{ref.use}" of {entry.owner}')
    others = {"data": DATA_KEYS, STREAM: STREAM_KEYS}.get(ref.kind, ())
    options, problems = check_options(
        signature, ref.options, key=ref.key, owner=f'{kind} "{ref.use}"', others=others
    )
    hidden = set(others) & set(signature.names)
    if ref.kind == STREAM:
        problems = [_in_data_table(ref, problem, hidden) for problem in problems]
    elif hidden:
        problems.append(_hides_engine_keys(ref, entry, sorted(hidden)))
    return Planned(ref.key, entry, options, ref.line, where), problems


def _kind_of(ref: ComponentRef) -> str:
    """A stream is a `data` component in another place."""
    return "data" if ref.kind == STREAM else ref.kind


def _in_data_table(ref: ComponentRef, problem: Problem, hidden: set[str]) -> Problem:
    """Say that an option with the name of an engine key is written below `data`."""
    name = problem.key.removeprefix(f"{ref.key}.")
    if name not in hidden:
        return problem
    hint = f"write it as `data = {{{name} = ...}}`, because `{name}` itself is the stream's"
    return Problem(f"{ref.key}.data.{name}", problem.message, hint)


def _hides_engine_keys(ref: ComponentRef, entry: Entry, hidden: list[str]) -> Problem:
    names = ", ".join(f"`{name}`" for name in hidden)
    return Problem(
        ref.key,
        f'data "{ref.use}" of {entry.owner} takes {names}, which belongs to the engine',
        "report it to the plugin's author",
    )


def _signature(entry: Entry, label: str) -> Signature:
    try:
        return signature_of(entry.target)
    except SftError:
        raise
    except Exception as error:
        raise _cannot_load(entry, label, error) from error


_TABLES: dict[str, type] = {
    "train": TrainSettings,
    "data": DataSettings,
    "evaluation": EvaluationSettings,
    "checkpoint": CheckpointSettings,
}


def _plan_settings(recipe: Recipe) -> tuple[dict[str, Any], list[Problem]]:
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, made in _TABLES.items():
        checked, found = check_options(
            signature_of(f"sft_engine.settings:{made.__name__}"),
            getattr(recipe, key),
            key=key,
            owner=f"`[{key}]`",
        )
        problems += found
        settings[key] = None if found else made(**checked)
    settings["seeds"], found = _plan_seeds(recipe)
    return settings, problems + found


def _plan_seeds(recipe: Recipe) -> tuple[SeedSettings | None, list[Problem]]:
    target = "sft_engine.settings:SeedSettings"
    own = dict(recipe.tables.get("seeds", {}))
    many, problems = check_options(
        signature_of(target, skip=("seed",)), own, key="seeds", owner="`[seeds]`"
    )
    skip = tuple(many)
    top = {"seed": recipe.tables["seed"]} if "seed" in recipe.tables else {}
    one, found = check_options(signature_of(target, skip=skip), top, key="", owner="a recipe")
    if problems + found:
        return None, problems + found
    return SeedSettings(**many, **one), []


def _unknown_name(ref: ComponentRef, plugins: Plugins) -> Problem:
    kind = _kind_of(ref)
    names = [e.name for e in plugins.catalog.entries(kind)]
    message = f'found "{ref.use}", which no installed plugin offers as {kind}'
    elsewhere = [e.kind for e in plugins.catalog.entries() if e.name == ref.use]
    if elsewhere:
        kinds = " and ".join(f"`{kind}`" for kind in elsewhere)
        return Problem(f"{ref.key}.use", message, f'"{ref.use}" is of the kind {kinds}')
    near = suggest(ref.use, names)
    hints = [near or choices(names), *map(str, plugins.broken)]
    if not near:
        hints.append(_home(kind, ref.use, {p.distribution for p in plugins.loaded}))
    return Problem(f"{ref.key}.use", message, "; ".join(hint for hint in hints if hint))


def _home(kind: str, name: str = "", installed: Iterable[str] = ()) -> str:
    absent = [home for home in HOMES.get(kind, ()) if home not in installed]
    exact = [home for home in absent if home == f"sft-{name}"]
    return f"perhaps `pip install {(exact or absent)[0]}` brings it" if absent else ""


def _load(entry: Entry, label: str) -> Any:
    module, _, attribute = entry.target.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise _cannot_load(entry, label, error) from error
    return found


def _cannot_load(entry: Entry, label: str, error: Exception) -> RecipeError:
    cause = f"{type(error).__name__}: {error}"
    return RecipeError(f"{label}: {entry.target} cannot be imported: {closed(cause)}")


def _asdict(settings: Any) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in fields(settings)}


def _written(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as TOML can hold them; None is what a recipe leaves out."""
    return {key: _toml_value(value) for key, value in options.items() if value is not None}


def _toml_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _written(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_toml_value(each) for each in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
