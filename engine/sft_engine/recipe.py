"""Recipes: TOML files become a frozen `Recipe` that knows on which line each key stands.

Only the shape of a recipe is judged here: which tables there are and that each component has a
`use`. Names and options are judged by `catalog.plan`, which knows the installed components.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sft_engine.components import SINGLE_KINDS
from sft_engine.drafts import (
    PHASE,
    RECIPE_KINDS,
    STREAM,
    Draft,
    Origin,
    Tables,
    inherit,
    parse_draft,
    read_draft,
)
from sft_engine.errors import RecipeError
from sft_engine.sentences import choices, closed, show_value, suggest
from sft_engine.settings import DataSettings, StreamSettings

__all__ = [
    "DATA_KEYS",
    "STREAM_KEYS",
    "ComponentRef",
    "Origin",
    "Problem",
    "Recipe",
    "dump_tables",
    "load_recipe",
    "parse_recipe",
    "show_value",
    "suggest",
]

DEFAULT_USE = {
    "optimizer": "adamw",
    "schedule": "linear",
    "explanation": "integrated-gradients",
}
"""What a table of that kind means that does not say which component it is for."""

SETTINGS = ("train", "evaluation", "checkpoint")
TOP_LEVEL = ("extends", "seed", "seeds", *RECIPE_KINDS, STREAM, *SETTINGS, PHASE)
DATA_KEYS = tuple(f.name for f in fields(DataSettings))
"""Keys of `[data]` that belong to the engine; all others are options of the data component."""
STREAM_KEYS = tuple(f.name for f in fields(StreamSettings))
"""The same for `[[stream]]`."""

_LAST_PART = re.compile(r"(?:\[\d+\]|(?:^|\.)(?:\"[^\"]*\"|[^.\[\]\"]*))$")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a recipe.

    Args:
        key: Where, such as `optimizer.lr` or `regularizer[0]`.
        message: What was found and what is allowed; no full stop.
        hint: The next step, if it is not obvious.
    """

    key: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class ComponentRef:
    """A component as the recipe names it, not looked up yet.

    Args:
        kind: Such as `optimizer`; `stream` for further data.
        use: Its name in the catalog.
        options: Constructor options as written.
        key: Where it stands: `optimizer`, `regularizer[0]`.
        line: Of its table in the file; 0 if it is in none.
    """

    kind: str
    use: str
    options: Mapping[str, Any]
    key: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose inheritance and overrides are resolved. Equal if its tables are equal.

    Args:
        path: The file; None if it was parsed from text.
        name: How messages call it, as the user wrote it.
        tables: All keys but `extends`; not to be changed.
        components: In the order of the recipe.
        origins: Where each key was written.
    """

    path: Path | None = field(compare=False)
    name: str = field(compare=False)
    tables: Mapping[str, Any]
    components: tuple[ComponentRef, ...]
    origins: Mapping[str, Origin] = field(compare=False, repr=False)

    @property
    def seeds(self) -> dict[str, Any]:
        """`seed` and the keys of `[seeds]`, as far as they are given."""
        given = {"seed": self.tables["seed"]} if "seed" in self.tables else {}
        return {**given, **self._table("seeds")}

    @property
    def train(self) -> Mapping[str, Any]:
        """Keys of `[train]`, unchecked."""
        return self._table("train")

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Keys of `[evaluation]`, unchecked."""
        return self._table("evaluation")

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        """Keys of `[checkpoint]`, unchecked."""
        return self._table("checkpoint")

    @property
    def data(self) -> Mapping[str, Any]:
        """Keys of `[data]` that belong to the engine, unchecked; the others are the component's."""
        return {k: v for k, v in self._table("data").items() if k in DATA_KEYS}

    @property
    def streams(self) -> list[Mapping[str, Any]]:
        """Keys of each `[[stream]]` that belong to the engine, unchecked."""
        tables = self.tables.get(STREAM, ())
        return [{k: v for k, v in table.items() if k in STREAM_KEYS} for table in tables]

    @property
    def phases(self) -> list[Mapping[str, Any]]:
        """Keys of each `[[phase]]`, unchecked."""
        return list(self.tables.get(PHASE, ()))

    def _table(self, name: str) -> Mapping[str, Any]:
        table: Mapping[str, Any] = self.tables.get(name, {})
        return table

    def where(self, key: str) -> str:
        """Return where a key (or the nearest table around it) is written: `r.toml:12: optimizer.lr`."""
        return f"{self.origin(key)}: {key}"

    def origin(self, key: str) -> Origin:
        """Return where a key was written, or the nearest table around it."""
        around, before = key, ""
        while around != before:
            if around in self.origins:
                return self.origins[around]
            around, before = _LAST_PART.sub("", around, count=1), around
        return Origin(self.name)

    def sentence(self, problem: Problem) -> str:
        """Return a problem as one sentence that begins with file, line and key."""
        text = f"{self.origin(problem.key)}: `{problem.key}`: {problem.message}"
        text += f"; {problem.hint}" if problem.hint else ""
        return closed(text)

    def error(self, problems: Iterable[Problem]) -> RecipeError:
        """Return one error that lists each problem on a line of its own, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self.origin(problem.key).line)
        return RecipeError("\n".join(dict.fromkeys(map(self.sentence, ordered))))

    def with_overrides(self, overrides: Sequence[str]) -> Recipe:
        """Return a copy with `key=value` overrides applied, as `--set` does."""
        draft = Draft(copy.deepcopy(dict(self.tables)), dict(self.origins))
        draft.override(overrides)
        return _finish(draft, self.path, self.name)

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML; it loads back to an equal recipe."""
        return dump_tables(self.tables)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, the recipes it extends, and `key=value` overrides.

    A table inherits key by key; lists are replaced whole. Where `use` changes, by inheritance or by an
    override, the options that belonged to the other component are dropped.

    Raises:
        RecipeError: the file cannot be read, is not TOML, or has tables that no recipe has.
    """
    draft = read_draft(Path(path))
    draft.override(overrides)
    return _finish(draft, Path(path), str(path))


def parse_recipe(text: str, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from text; `name` stands for the file in messages.

    Raises:
        RecipeError: as for `load_recipe`.
    """
    draft = inherit(parse_draft(text, name), Path(name))
    draft.override(overrides)
    return _finish(draft, None, name)


def dump_tables(tables: Mapping[str, Any]) -> str:
    """Write tables as TOML: scalars first, then tables in their order, nested tables inline."""
    import tomlkit

    document = tomlkit.document()
    for key, value in sorted(tables.items(), key=lambda item: _has_header(item[1])):
        if isinstance(value, dict):
            document.add(key, _toml_table(value))
        elif _has_header(value):
            many = tomlkit.aot()
            for each in value:
                many.append(_toml_table(each))
            document.add(key, many)
        else:
            document.add(key, _toml_item(value))
    return tomlkit.dumps(document)


# --- Judging the shape -----------------------------------------------------------------------------


def _finish(draft: Draft, path: Path | None, name: str) -> Recipe:
    """Check the shape and freeze."""
    for kind, use in DEFAULT_USE.items():
        table = draft.tables.get(kind)
        if isinstance(table, dict) and "use" not in table:
            draft.tables[kind] = {"use": use, **table}
    problems = list(_shape_problems(draft.tables))
    components = () if problems else tuple(_components(draft))
    recipe = Recipe(path, name, draft.tables, components, draft.origins)
    if problems:
        raise recipe.error(problems)
    return recipe


def _shape_problems(tables: Tables) -> Iterable[Problem]:
    for key, value in tables.items():
        if key not in TOP_LEVEL:
            yield _unknown_table(key)
        elif key in SINGLE_KINDS:
            yield from _single_problems(key, value)
        elif key in RECIPE_KINDS or key in (STREAM, PHASE):
            yield from _list_problems(key, value)
        elif key == "seed" and type(value) is not int:
            yield Problem(key, f"found {show_value(value)}, allowed: a whole number, 0 or more")
        elif key in ("seeds", *SETTINGS) and not isinstance(value, dict):
            yield Problem(key, f"found {show_value(value)}, allowed: a table, `[{key}]`")


def _unknown_table(key: str) -> Problem:
    found = f"no recipe has this key, {choices(TOP_LEVEL)}"
    if key == "weights":
        return Problem(key, found, "name weights in the backbone: `[backbone]`, `name = ...`")
    return Problem(key, found, suggest(key, TOP_LEVEL))


def _single_problems(kind: str, value: Any) -> Iterable[Problem]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        yield Problem(kind, f"found a list, `[[{kind}]]`, allowed: one {kind}, written `[{kind}]`")
    elif not isinstance(value, dict):
        yield _not_a_table(kind, value, f"[{kind}]")
    else:
        yield from _use_problems(kind, kind, value)


def _list_problems(kind: str, value: Any) -> Iterable[Problem]:
    if isinstance(value, dict):
        yield Problem(
            kind, f"found one table, `[{kind}]`, allowed: a list of them, each written `[[{kind}]]`"
        )
    elif not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        yield _not_a_table(kind, value, f"[[{kind}]]")
    else:
        for index, each in enumerate(value if kind != PHASE else ()):
            named = "data" if kind == STREAM else kind
            yield from _use_problems(f"{kind}[{index}]", named, each)


def _not_a_table(kind: str, value: Any, header: str) -> Problem:
    if kind == PHASE:
        return Problem(kind, f"found {show_value(value)}, allowed: tables, each written `{header}`")
    use = show_value(value) if isinstance(value, str) else '"..."'
    return Problem(
        kind, f"found {show_value(value)}, allowed: a table, `{header}` with `use = {use}` below it"
    )


def _use_problems(key: str, kind: str, table: Tables) -> Iterable[Problem]:
    if "use" not in table:
        yield Problem(
            key,
            f"`use` is missing, it names the {kind}",
            f"`sft-engine plugins` lists each {kind} that is installed",
        )
    elif not isinstance(table["use"], str) or not table["use"]:
        yield Problem(
            f"{key}.use",
            f"found {show_value(table['use'])}, allowed: the name of an installed {kind}",
        )


def _components(draft: Draft) -> Iterable[ComponentRef]:
    for kind, value in draft.tables.items():
        if kind not in RECIPE_KINDS and kind != STREAM:
            continue
        listed = isinstance(value, list)
        for index, table in enumerate(value if listed else [value]):
            key = f"{kind}[{index}]" if listed else kind
            line = draft.origins[key].line if key in draft.origins else 0
            yield ComponentRef(kind, table["use"], _own_options(kind, table), key, line)


def _own_options(kind: str, table: Tables) -> Tables:
    engine_keys = {"data": DATA_KEYS, STREAM: STREAM_KEYS}.get(kind, ())
    own = {k: v for k, v in table.items() if k != "use" and k not in engine_keys}
    if kind == STREAM and isinstance(table.get("data"), dict):
        own |= table["data"]
    return copy.deepcopy(own)


def _has_header(value: Any) -> bool:
    """Whether a top-level value is written below `[key]` or `[[key]]` rather than after `key =`."""
    tables = value if isinstance(value, list) else [value]
    return bool(tables) and all(isinstance(table, dict) for table in tables)


def _toml_table(table: Mapping[str, Any]) -> Any:
    import tomlkit

    made = tomlkit.table()
    for key, value in table.items():
        made.add(key, _toml_item(value))
    return made


def _toml_item(value: Any) -> Any:
    import tomlkit

    if isinstance(value, dict):
        inline = tomlkit.inline_table()
        for key, each in value.items():
            inline.add(key, _toml_item(each))
        return inline
    if isinstance(value, (list, tuple)):
        array = tomlkit.array()
        for each in value:
            array.append(_toml_item(each))
        return array
    return tomlkit.item(value)
