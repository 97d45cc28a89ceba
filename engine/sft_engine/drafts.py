"""Recipes on their way in: a file, the recipes it extends and overrides become one set of tables.

A draft knows of every key where it was written. What the keys mean is judged in `recipe`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from sft_engine.components import KINDS, SINGLE_KINDS
from sft_engine.errors import RecipeError
from sft_engine.sentences import closed, show_value
from sft_engine.toml_lines import Path as TomlPath
from sft_engine.toml_lines import given_again, key_lines, show_key, split_key

Tables = dict[str, Any]
KeyPath = list[str | int]

RECIPE_KINDS = tuple(kind for kind in KINDS if kind != "weights")
"""Kinds that a recipe may name; weights are named by the backbone instead."""

LIST_KINDS = tuple(kind for kind in RECIPE_KINDS if kind not in SINGLE_KINDS)

STREAM, PHASE = "stream", "phase"
"""Lists of tables that name no kind: a stream is further data, a phase a part of the training."""


@dataclass(frozen=True)
class Origin:
    """Where a key was written: a file and its line, or `--set` and no line."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


OVERRIDE = Origin("--set")


class Draft:
    """Tables, and of each key (`regularizer[0].alpha`) where it was written."""

    def __init__(self, tables: Tables, origins: dict[str, Origin]) -> None:
        self.tables = tables
        self.origins = origins

    def override(self, overrides: Sequence[str]) -> None:
        """Apply `key=value` overrides; those of `use` first, so that their order does not matter.

        Raises:
            RecipeError: no key, no value, or the key leads nowhere.
        """
        parsed = [_parse_override(text) for text in overrides]
        for path, value in sorted(parsed, key=lambda item: item[0][-1] != "use"):
            if path[0] == "extends":
                _override_error(path, "allowed in a file only")
            self._set(path, value)

    def _set(self, path: KeyPath, value: Any) -> None:
        around = self._around(path)
        last = path[-1]
        if isinstance(around, list):
            if not isinstance(last, int) or last >= len(around):
                _no_such_item(path, path[:-1], around)
            around[last] = value
        else:
            if last == "use" and around.get("use", value) != value:
                around.clear()  # the other options belonged to another component
                self.forget(path[:-1])
            around[str(last)] = value
        self.forget(path)
        self.origins[show_key(path)] = OVERRIDE

    def _around(self, path: KeyPath) -> Any:
        """Return the table or list that holds the last key; made where the recipe has none."""
        here: Any = self.tables
        for depth in range(1, len(path)):
            here = self._child(here, path, path[:depth])
            if not isinstance(here, (dict, list)):
                _override_error(path, f"`{show_key(path[:depth])}` is no table")
            self.origins.setdefault(show_key(path[:depth]), OVERRIDE)
        return here

    def _child(self, here: Any, path: KeyPath, so_far: KeyPath) -> Any:
        part = so_far[-1]
        if isinstance(here, dict):
            is_list = len(so_far) == 1 and part in (*LIST_KINDS, STREAM, PHASE)
            return here.setdefault(str(part), [] if is_list else {})
        if not isinstance(part, int) or part > len(here):
            _no_such_item(path, so_far[:-1], here)
        if part == len(here):
            here.append({})
        return here[part]

    def forget(self, path: KeyPath) -> None:
        """Drop the origins of all keys below one that is replaced."""
        below = (f"{show_key(path)}.", f"{show_key(path)}[")
        for key in [k for k in self.origins if k.startswith(below)]:
            del self.origins[key]


def read_draft(path: Path, chain: tuple[Path, ...] = (), asked_by: str = "") -> Draft:
    """Read a recipe file and those that it extends.

    Args:
        path: The file.
        chain: Files that extend this one, to notice a circle.
        asked_by: Begin of messages, if another recipe names this file.

    Raises:
        RecipeError: a file cannot be read or is not TOML, or recipes extend each other in a circle.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"{asked_by}{path}: no such file; {_similar(path)}") from None
    except IsADirectoryError:
        raise RecipeError(
            closed(f"{asked_by}{path}: found a folder, allowed: a recipe file{_inside(path)}")
        ) from None
    except OSError as error:
        raise RecipeError(
            f"{asked_by}{path}: cannot be read ({error.strerror}); check its permissions."
        ) from None
    return inherit(parse_draft(_decode(raw, path), str(path)), path, chain)


def parse_draft(text: str, name: str) -> Draft:
    """Parse a recipe's text; `name` stands for its file in messages.

    Raises:
        RecipeError: it is not TOML, or empty.
    """
    text = text.replace("\r\n", "\n")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_toml_sentence(error, text, name)) from None
    if not tables:
        raise RecipeError(
            f"{name}: the recipe is empty; `sft-engine new-recipe` writes one to begin with."
        )
    origins = {show_key(path): Origin(name, line) for path, line in key_lines(text).items()}
    return Draft(tables, origins)


def inherit(draft: Draft, path: Path, chain: tuple[Path, ...] = ()) -> Draft:
    """Merge the recipe that `extends` names, if any, under this one.

    Raises:
        RecipeError: as for `read_draft`.
    """
    if "extends" not in draft.tables:
        return draft
    origin = draft.origins["extends"]
    parent = draft.tables.pop("extends")
    if not isinstance(parent, str) or not parent:
        raise RecipeError(
            f"{origin}: `extends`: found {show_value(parent)}, allowed: the path of another recipe, "
            "relative to this one."
        )
    chain = (*chain, path.resolve())
    if (path.parent / parent).resolve() in chain:
        raise RecipeError(
            f'{origin}: `extends`: found "{parent}", which leads back to this recipe; '
            "break the circle."
        )
    return _merge(read_draft(path.parent / parent, chain, f"{origin}: `extends`: "), draft)


def _merge(parent: Draft, child: Draft) -> Draft:
    for key, value in child.tables.items():
        inherited = parent.tables.get(key)
        if isinstance(inherited, dict) and _same_component(inherited, value):
            parent.tables[key] = _merge_tables(inherited, value)
        else:
            parent.tables[key] = value
            parent.forget([key])
    return Draft(parent.tables, parent.origins | child.origins)


def _same_component(inherited: Tables, own: Any) -> bool:
    """Whether two tables belong together: settings, or options of one component."""
    return isinstance(own, dict) and own.get("use", inherited.get("use")) == inherited.get("use")


def _merge_tables(inherited: Tables, own: Tables) -> Tables:
    merged = dict(inherited)
    for key, value in own.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merge_tables(old, value)
        else:
            merged[key] = value
    return merged


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}:{line}: found the byte 0x{raw[error.start]:02x}, allowed: UTF-8 text; "
            "save the file as UTF-8."
        ) from None


_TWICE = re.compile(r"Cannot (overwrite a value|declare .* twice)")


def _toml_sentence(error: tomllib.TOMLDecodeError, text: str, name: str) -> str:
    message = str(error)
    position = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    lines = text.rstrip().split("\n")
    line, column = (int(position[1]), int(position[2])) if position else (len(lines), 0)
    if _TWICE.match(message):
        # The rest of the line was not looked at, and may be anything.
        last = lines[line - 1][: column - 1 if column else None]
        again = given_again("\n".join([*lines[: line - 1], last]))
        if again is not None:
            return f"{name}:{line}: {_twice(*again, table=last.lstrip().startswith('['))}."
    what = re.sub(r" \(at [^()]*\)$", "", message)
    return f"{name}:{line}: not valid TOML: {what[:1].lower()}{what[1:]}; correct this line."


def _twice(path: TomlPath, first: int, *, table: bool) -> str:
    """Say that a key or table is given again, and what to do."""
    key = show_key(path)
    if not table:
        return f"`{key}`: found a second time, allowed: once, as on line {first}; keep one of them"
    several = path[0] in (*LIST_KINDS, STREAM, PHASE) and len(path) == 1
    step = f"write `[[{key}]]` for each of several" if several else "move its keys there"
    return f"`{key}`: found a second table `[{key}]`, allowed: one, as on line {first}; {step}"


def _parse_override(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(
            f'--set {text}: found no "=", allowed: KEY=VALUE, such as `--set optimizer.lr=2e-5`.'
        )
    try:
        parts = split_key(re.sub(r"\[(\d+)\]", r".\1", key.strip()))
    except ValueError:
        raise RecipeError(
            f"--set {text}: found the key {show_value(key)}, allowed: names with dots between "
            "them, such as `optimizer.lr` or `regularizer.0.alpha`."
        ) from None
    path: KeyPath = [int(part) if part.isdecimal() and i else part for i, part in enumerate(parts)]
    return path, _override_value(value.strip())


def _override_value(text: str) -> Any:
    """Read a value as TOML; what is not TOML is a string, so that a shell needs no second quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _no_such_item(path: KeyPath, name: KeyPath, items: list[Any]) -> NoReturn:
    shown = show_key(name)
    step = f"address one by its number, such as `{shown}[0]`" if items else "it is empty"
    _override_error(path, f"`{shown}` is a list of {len(items)}; {step}")


def _override_error(path: KeyPath, message: str) -> NoReturn:
    raise RecipeError(f"--set: `{show_key(path)}`: {message}.")


def _similar(path: Path) -> str:
    folder = path.parent
    files = {p.stem: p for p in sorted(folder.glob("*.toml"))} if folder.is_dir() else {}
    close = get_close_matches(path.stem, files, n=3, cutoff=0.6)
    if not close:
        return "check the path."
    return "did you mean " + " or ".join(str(files[stem]) for stem in close) + "?"


def _inside(folder: Path) -> str:
    names = sorted(p.name for p in folder.glob("*.toml"))
    return f", such as {folder / names[0]}" if names else ""
