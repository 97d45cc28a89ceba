"""The tables `[[stream]]` and `[[phase]]` of a recipe: checked one by one, then against each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sft_engine.options import check_options
from sft_engine.recipe import Problem, Recipe
from sft_engine.sentences import choices, show_value, suggest
from sft_engine.settings import PhaseSettings, StreamSettings
from sft_engine.signatures import signature_of

if TYPE_CHECKING:
    from sft_engine.signatures import Signature

Settings = TypeVar("Settings", StreamSettings, PhaseSettings)

TARGET = "data"
RESERVED = (TARGET, "train", "validation", "test")
"""Names that a stream cannot have: they are those of the target data and of its splits."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Parts:
    """The streams and phases of a recipe.

    Args:
        streams: Further training data, in the order of the recipe.
        phases: In turn; none for a recipe without phases.
    """

    streams: tuple[StreamSettings, ...] = ()
    phases: tuple[PhaseSettings, ...] = ()


def plan_parts(recipe: Recipe) -> tuple[Parts, list[Problem]]:
    """Check every `[[stream]]` and `[[phase]]`; return them, and every problem found."""
    streams, problems = _checked(StreamSettings, "stream", recipe.streams)
    phases, found = _checked(PhaseSettings, "phase", recipe.phases)
    problems += found
    known = [TARGET, *(str(table.get("name")) for table in recipe.streams)]
    problems += _name_problems("stream", recipe.streams, RESERVED)
    problems += _name_problems("phase", recipe.phases)
    problems += _unknown_streams(recipe.phases, known)
    problems += _unused_streams(recipe, known[1:])
    phases = [phase if phase.streams else replace(phase, streams={TARGET: 1.0}) for phase in phases]
    return Parts(tuple(streams), tuple(phases)), problems


def _checked(
    made: type[Settings], key: str, tables: Sequence[Mapping[str, Any]]
) -> tuple[list[Settings], list[Problem]]:
    signature: Signature = signature_of(f"sft_engine.settings:{made.__name__}")
    settings: list[Settings] = []
    problems: list[Problem] = []
    for index, table in enumerate(tables):
        checked, found = check_options(
            signature, table, key=f"{key}[{index}]", owner=f"`[[{key}]]`"
        )
        problems += found
        settings += [] if found else [made(**checked)]
    return settings, problems


def _name_problems(
    key: str, tables: Sequence[Mapping[str, Any]], reserved: Iterable[str] = ()
) -> Iterator[Problem]:
    """Refuse names that two have, that stand for something else, or that no record can hold."""
    taken = Counter(repr(table.get("name")) for table in tables)
    for index, table in enumerate(tables):
        name, where = table.get("name"), f"{key}[{index}].name"
        if not isinstance(name, str):
            continue  # said already
        if name in reserved:
            yield Problem(where, f'found "{name}", which is part of `[data]`', "choose another")
        elif not _NAME.fullmatch(name):
            allowed = "letters, digits, `_`, `.` and `-`"
            yield Problem(where, f"found {show_value(name)}, allowed: {allowed}")
        elif taken[repr(name)] > 1:
            yield Problem(where, f'more than one {key} is called "{name}"', "choose another")


def _unknown_streams(
    phases: Sequence[Mapping[str, Any]], known: Sequence[str]
) -> Iterator[Problem]:
    for index, table in enumerate(phases):
        for name in _streams_of(table):
            if name not in known:
                near = suggest(name, known) or "name it in a `[[stream]]`"
                message = f"the recipe has no such stream, {choices(known)}"
                yield Problem(f"phase[{index}].streams.{name}", message, near)


def _unused_streams(recipe: Recipe, names: Sequence[str]) -> Iterator[Problem]:
    """A stream that nothing is trained on is a mistake: a typo, or a phase that was forgotten."""
    used = {name for table in recipe.phases for name in _streams_of(table)}
    for index, name in enumerate(names):
        if name not in used:
            example = f"`streams = {{{name} = 1.0}}`"
            yield Problem(
                f"stream[{index}]", f'no phase trains on "{name}"', f"a `[[phase]]` needs {example}"
            )


def _streams_of(table: Mapping[str, Any]) -> Iterable[str]:
    streams = table.get("streams")
    return streams if isinstance(streams, dict) else ()
