"""Write a number into a recipe file; comments, order and layout stay."""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import OutputError, RecipeError
from sft_engine.sentences import reason_of
from sft_engine.toml_lines import key_lines, show_key

if TYPE_CHECKING:
    from sft_engine.recipe import Recipe

Where = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """What was changed in a recipe file.

    Args:
        path: The file.
        line: Of the key.
        key: Such as `optimizer.lr`.
        before: What the file itself said; None if it left the key to a default or to `extends`.
        after: What it says now.
    """

    path: Path
    line: int
    key: str
    before: Any
    after: float


def check_appliable(recipe: Recipe, where: Where, overrides: Sequence[str]) -> Path:
    """Return the file that `set_number` would change.

    Raises:
        RecipeError: the recipe is no file, `--set` changes what the number belongs to, or the table
            that the number is to be written to is in a recipe that this one extends.
    """
    key = show_key(where)
    if recipe.path is None:
        raise RecipeError(f"`{key}` cannot be written: the recipe {recipe.name!r} is no file")
    name = str(where[0])
    for text in overrides:
        if text.startswith((f"{name}.", f"{name}=", f"{name}[")):
            raise RecipeError(
                f"--set {text} changes `{name}`, and --apply writes `{key}` into {recipe.path}, where it "
                "would go with another one: write the change into the file first"
            )
    if len(where) > 2 and _at(_read(recipe.path), where[:-1]) is None:  # noqa: PLR2004
        raise RecipeError(
            f"{recipe.path}: `{show_key(where[:-1])}` is written in {recipe.origin(key).file}: apply the "
            "learning rate there"
        )
    return recipe.path


def set_number(path: Path, where: Where, value: float) -> Change:
    """Set a key of a recipe file, and make the table around it where there is none.

    Raises:
        OutputError: the file cannot be written; it is as it was.
    """
    text = _read_text(path)
    changed = _changed(text, where, value)
    before = tomllib.loads(text)
    # Nothing but this key may differ: what is written is somebody's own work.
    if tomllib.loads(changed) != _with(before, where, value):
        raise OutputError(
            f"{path} is laid out in a way that cannot be changed safely: set `{show_key(where)} = {value:g}` "
            "by hand"
        )
    _replace(path, changed)
    line = key_lines(changed.replace("\r\n", "\n"))[where]
    return Change(path, line, show_key(where), _at(before, where), value)


def _changed(text: str, where: Where, value: float) -> str:
    import tomlkit

    document: Any = tomlkit.parse(text)
    here: Any = document
    for part in where[:-1]:
        if isinstance(part, str) and part not in here:
            here[part] = tomlkit.table()
        here = here[part]
    here[where[-1]] = value
    return tomlkit.dumps(document)


def _with(tables: dict[str, Any], where: Where, value: float) -> dict[str, Any]:
    """Return a copy of tables with one key set."""
    expected = copy.deepcopy(tables)
    here: Any = expected
    for part in where[:-1]:
        here = here.setdefault(part, {}) if isinstance(here, dict) else here[part]
    here[where[-1]] = value
    return expected


def _at(tables: Any, where: Where) -> Any:
    for part in where:
        try:
            tables = tables[part]
        except (KeyError, IndexError):
            return None
    return tables


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(_read_text(path))


def _read_text(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:  # Windows line ends stay
        return file.read()


def _replace(path: Path, text: str) -> None:
    target = path.resolve()  # a link stays one
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {reason_of(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
