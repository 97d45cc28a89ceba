"""Recipes to begin with: text with every option of the components it names, commented out.

`# ` begins a comment and `#key` an option that has its default: whoever removes the `#` changes nothing yet.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from sft_engine.catalog import DEFAULTS, HOMES
from sft_engine.components import SINGLE_KINDS
from sft_engine.drafts import RECIPE_KINDS
from sft_engine.errors import RecipeError, SftError
from sft_engine.options import Option, Signature, allowed, signature_of
from sft_engine.sentences import choices, closed, suggest

if TYPE_CHECKING:
    from sft_engine.entries import Entry
    from sft_engine.plugins import Plugins

WIDTH = 100
HEADER = """\
# {task} with {backbone} on {data}.   sft-engine run RECIPE
# A line such as `#key = value` is an option with its default: remove the `#` and change it.
# What stands in capitals is yours to fill in. `sft-engine check RECIPE` checks it all.

seed = 0
"""
MORE = """\
# Components of other kinds that are installed; `sft-engine plugins show NAME` has their options.
"""
PHASES = """\
# Training in turns is written in tables `[[phase]]`, further training data in `[[stream]]`:
# docs/phases.md has an example.
"""
OBVIOUS = ("a string", "true or false", "a list of strings", "a table of strings")
"""Types that a default shows as well as words do."""

TABLES = (
    *("task", "data", "backbone", "train", "optimizer", "schedule"),
    *("evaluation", "checkpoint", "seeds"),
)
_SETTINGS = {
    "train": "TrainSettings",
    "data": "DataSettings",
    "evaluation": "EvaluationSettings",
    "checkpoint": "CheckpointSettings",
    "seeds": "SeedSettings",
}


def new_recipe(task: str, backbone: str, data: str, plugins: Plugins) -> str:
    """Write a commented recipe.

    Args:
        task: Name of a task component.
        backbone: Name of a backbone component.
        data: Name of a data component.
        plugins: What is installed.

    Returns:
        TOML that passes `check`; options without a default hold their name in capitals.

    Raises:
        RecipeError: no installed plugin offers one of them.
    """
    named = {"task": task, "data": data, "backbone": backbone}
    named |= {ref.kind: ref.use for ref in DEFAULTS}
    given = {ref.kind: dict(ref.options) for ref in DEFAULTS}
    found = {kind: _entry(kind, name, plugins) for kind, name in named.items()}
    parts = [HEADER.format(task=task, backbone=backbone, data=data)]
    parts += [_table(key, found.get(key), given.get(key, {}), plugins) for key in TABLES]
    parts += [PHASES, *_others(set(found.values()), plugins)]
    return "\n".join(parts)


def component_signature(entry: Entry) -> Signature:
    """Return what a component's constructor takes.

    Raises:
        RecipeError: its source does not tell, and it cannot be imported.
    """
    try:
        return signature_of(entry.target)
    except SftError:
        raise
    except Exception as error:
        raise RecipeError(
            closed(
                f'{entry.kind} "{entry.name}" of {entry.owner}: {entry.target} cannot be imported: '
                f"{type(error).__name__}: {error}"
            )
        ) from error


def snippet(entry: Entry) -> str:
    """Return the table that a recipe needs for a component, every default written out."""
    if entry.kind == "weights":
        return f"[backbone]\nname = {toml(entry.name)}\n"
    header = f"[{entry.kind}]" if entry.kind in SINGLE_KINDS else f"[[{entry.kind}]]"
    lines = [header, f"use = {toml(entry.name)}"]
    lines += [_assignment(option) for option in component_signature(entry).options]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """Write a value as TOML."""
    import tomlkit

    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return str(table.as_string())
    return str(tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string())


def _entry(kind: str, name: str, plugins: Plugins) -> Entry:
    entry = plugins.catalog.get(kind, name)
    if entry is None:
        known = [each.name for each in plugins.catalog.entries(kind)]
        home = f"perhaps `pip install {HOMES[kind][0]}` brings it" if kind in HOMES else ""
        hint = suggest(name, known) or choices(known) or home
        raise RecipeError(
            closed(f'--{kind}: found "{name}", which no installed plugin offers; {hint}')
        )
    return entry


def _table(key: str, entry: Entry | None, given: dict[str, Any], plugins: Plugins) -> str:
    """Return a table: options that are needed or given, and all others commented out."""
    summary = entry.summary if entry else ""
    lines = [f"[{key}]", *_comment(summary)]
    if entry:
        lines.append(f"use = {toml(entry.name)}")
        for option in component_signature(entry).options:
            lines += _option(option, given, _examples(entry, option, plugins))
    if key in _SETTINGS:
        for option in _settings(key).options:
            lines += _option(option, given)
    return "\n".join(lines) + "\n"


def _settings(key: str) -> Signature:
    # `seed` stands above all tables.
    return signature_of(f"sft_engine.settings:{_SETTINGS[key]}", skip=("seed",))


def _examples(entry: Entry, option: Option, plugins: Plugins) -> list[str]:
    if entry.kind == "backbone" and option.name == "name":
        return [each.name for each in plugins.catalog.entries("weights")]
    return []


def _option(option: Option, given: dict[str, Any], examples: Iterable[str] = ()) -> Iterator[str]:
    values = allowed(option.annotation)
    hints = [option.help, "" if values in OBVIOUS else f"Allowed: {values}."]
    hints += [f"Installed: {', '.join(examples)}."] if examples else []
    yield from _comment(" ".join(filter(None, hints)))
    if option.name in given:
        yield f"{option.name} = {toml(given[option.name])}"
    elif option.required and "=" in _assignment(option, examples):
        yield _assignment(option, examples)
    else:
        yield f"#{_assignment(option)}"


def _assignment(option: Option, examples: Iterable[str] = ()) -> str:
    """Return `key = value`: the default, or an example, or the name in capitals."""
    if not option.required and option.default is not None:
        return f"{option.name} = {toml(option.default)}"
    if option.required and _takes_text(option.annotation):
        return f"{option.name} = {toml(next(iter(examples), option.name.upper()))}"
    return f"{option.name} = …"


def _takes_text(annotation: Any) -> bool:
    return annotation is str or str in get_args(annotation)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2)]


def _others(taken: set[Entry], plugins: Plugins) -> Iterator[str]:
    """Write each component that the recipe could have besides, commented out."""
    free = [kind for kind in RECIPE_KINDS if kind not in {entry.kind for entry in taken}]
    entries = [entry for kind in free for entry in plugins.catalog.entries(kind)]
    if entries:
        yield MORE
    for entry in entries:
        header = f"[{entry.kind}]" if entry.kind in SINGLE_KINDS else f"[[{entry.kind}]]"
        yield "\n".join([*_comment(entry.summary), f"#{header}", f"#use = {toml(entry.name)}", ""])
