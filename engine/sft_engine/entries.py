"""Installed components by kind and name; nothing is imported until one is built."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sft_engine.components import KINDS
from sft_engine.errors import RecipeError
from sft_engine.sentences import choices, closed, suggest


@dataclass(frozen=True)
class Entry:
    """A component that is installed.

    Args:
        kind: One of `components.KINDS`.
        name: What a recipe writes after `use`.
        target: "package.module:Class", imported only when it is built.
        summary: One line for lists.
        distribution: That supplies it, with its `version`.
    """

    kind: str
    name: str
    target: str
    summary: str
    distribution: str = ""
    version: str = ""

    @property
    def owner(self) -> str:
        """The distribution with its version."""
        return f"{self.distribution} {self.version}".strip() or "an unnamed plugin"


class Catalog:
    """Installed components by kind and name.

    Args:
        distribution: Written into the entries that `add` makes, with its `version`.
    """

    def __init__(self, distribution: str = "", version: str = "") -> None:
        self._owner = (distribution, version)
        self._entries: dict[tuple[str, str], Entry] = {}

    def add(self, kind: str, name: str, target: str, summary: str) -> None:
        """Add a component; nothing is imported.

        Args:
            kind: One of `components.KINDS`.
            name: Unique in its kind; third parties prefix theirs: `acme/l2-sp`.
            target: "package.module:Class"; for `weights` a function that returns a folder.
            summary: One line for lists.

        Raises:
            RecipeError: no such kind, a malformed target, or the name is taken.
        """
        entry = Entry(kind, name, target, summary, *self._owner)
        if kind not in KINDS:
            near = suggest(kind, KINDS) or choices(KINDS)
            raise RecipeError(closed(f'{entry.owner} adds "{name}" of the kind `{kind}`; {near}'))
        if not re.fullmatch(r"[\w.]+:[\w.]+", target):
            raise RecipeError(
                f'{entry.owner} adds the {kind} "{name}" with the target {target!r}, '
                'allowed: "package.module:Class".'
            )
        self._put(entry)

    def merge(self, other: Catalog) -> None:
        """Take over all entries of another catalog, or none if a name is taken.

        Raises:
            RecipeError: a name is taken; both distributions are named.
        """
        before = dict(self._entries)
        try:
            for entry in other._entries.values():
                self._put(entry)
        except RecipeError:
            self._entries = before
            raise

    def _put(self, entry: Entry) -> None:
        taken = self._entries.get((entry.kind, entry.name))
        if taken:
            raise RecipeError(
                f'the {entry.kind} "{entry.name}" is offered twice, by {taken.owner} '
                f"({taken.target}) and by {entry.owner} ({entry.target}); uninstall one of them, "
                "or load the other plugins alone with SFT_ENGINE_PLUGINS."
            )
        self._entries[entry.kind, entry.name] = entry

    def get(self, kind: str, name: str) -> Entry | None:
        """Return a component's entry, or None."""
        return self._entries.get((kind, name))

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Return all entries, or those of a kind, sorted by kind and name."""
        chosen = [e for e in self._entries.values() if kind in (None, e.kind)]
        return sorted(chosen, key=lambda e: (list(KINDS).index(e.kind), e.name))
