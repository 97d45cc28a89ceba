"""The folder of a study, which any number of processes may work on at once.

    study.json        what the study is about, its cells and their states, and the results
    recipe.toml       the recipe
    report.json       sections and verdict; report.html shows them
    runs/CELL/        an ordinary run each
    locks/            files that running processes hold a lock on, and the logs of workers

A cell belongs to the process that holds its lock; a killed process holds none, and its cell is gone on
with from its newest checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import OutputError
from sft_engine.recipe import Recipe, parse_recipe
from sft_engine.records import GIVEN_UP, HOPELESS, remove, write_json, write_text
from sft_engine.sentences import reason_of
from sft_engine.study.design import Cell, Design
from sft_engine.tuning.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT = 1
STUDY = "study.json"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a study is about; it goes on only under the same terms.

    Args:
        recipe: As TOML.
        design: Which runs.
        drop: Share of a run after which it may be stopped as hopeless; 0 for never.
    """

    recipe: str
    design: Design
    drop: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as study.json holds it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Ending:
    """How a cell stands.

    Args:
        state: `complete`, `stopped` (as hopeless), `failed` for good, or `open`.
        reason: Why it was stopped or failed.
    """

    state: str
    reason: str = ""


@dataclass
class StudyFolder:
    """The folder of one study.

    Args:
        path: Of the folder.
    """

    path: Path

    # --- opening ---------------------------------------------------------------------------------

    def open(self, terms: Terms, name: str, cells: Sequence[Cell]) -> None:
        """Write what the study is about, or compare with what is there.

        Raises:
            OutputError: the folder holds something else, or cannot be written.
        """
        self._require_own()
        try:
            for part in (self.path / "runs", self.path / "locks"):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"--output {self.path}: {reason_of(error)}, or choose another folder"
            ) from error
        with self.alone():
            if not (self.path / STUDY).exists():
                write_text(self.path / "recipe.toml", terms.recipe)
                head = {"format": FORMAT, "recipe": name, "terms": terms.as_dict()}
                write_json(
                    self.path / STUDY,
                    {**head, "state": "running", "cells": [cell.as_dict() for cell in cells]},
                )
                return
            self._agree(terms)

    def _require_own(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"--output {self.path} is a file: choose a folder")
        if not self.path.is_dir() or (self.path / STUDY).exists():
            return
        parts = {"runs", "locks", "recipe.toml"}  # what a study that was not begun has left
        others = sorted(p.name for p in self.path.iterdir() if p.name not in parts)
        if others or any((self.path / "runs").glob("*")):
            raise OutputError(
                f"--output {self.path} holds {(others or ['runs'])[0]!r} and no study: choose a new or "
                "empty folder, or that of a study to go on with it"
            )

    def _agree(self, terms: Terms) -> None:
        content = self.read()
        own, theirs = terms.as_dict(), content.get("terms", {})
        if not theirs:
            raise OutputError(
                f"--output {self.path} holds a study of `sft-engine tune`: choose another folder"
            )
        different = [name for name, value in own.items() if theirs.get(name) != value]
        if different:
            raise OutputError(
                f"--output {self.path} holds a study with other {' and '.join(different)} "
                f"({self.path / STUDY}): give the same command to go on with it, or choose another folder"
            )

    def alone(self) -> FileLock:
        """Return the lock under which study.json is written."""
        return FileLock(self.path / "locks" / "study.lock")

    # --- content ---------------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        """Return study.json."""
        content: dict[str, Any] = json.loads((self.path / STUDY).read_text(encoding="utf-8"))
        return content

    def terms(self) -> Terms:
        """Return what the study is about."""
        given = self.read()["terms"]
        design = {**given["design"], "vary": tuple(given["design"]["vary"])}
        return Terms(**{**given, "design": Design(**design)})

    def cells(self) -> list[Cell]:
        """Return the cells of the design."""
        names = tuple(Cell.__dataclass_fields__)
        return [Cell(**{name: each[name] for name in names}) for each in self.read()["cells"]]

    def recipe(self) -> Recipe:
        """Return the recipe of the study, under the name of its file."""
        content = self.read()
        text, name = content["terms"]["recipe"], content["recipe"]
        return replace(parse_recipe(text, name), path=Path(name))

    def recipe_of(self, cell: Cell) -> Recipe:
        """Return the recipe of a cell."""
        return self.recipe().with_overrides(
            [*cell.overrides(self.terms().design), "evaluation.page=false"]
        )

    # --- cells -----------------------------------------------------------------------------------

    def run_of(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.path / "runs" / cell.name

    def lock_of(self, cell: Cell) -> FileLock:
        """Return the lock of a cell."""
        return FileLock(self.path / "locks" / f"{cell.name}.lock")

    def ending(self, cell: Cell) -> Ending:
        """Say how a cell stands, by its run folder alone."""
        folder = self.run_of(cell)
        if (folder / "report.json").exists() and (folder / "model").exists():
            reason = str(_read(folder / "report.json").get("reason", ""))
            hopeless = reason.startswith(HOPELESS)
            return Ending("stopped", reason) if hopeless else Ending("complete")
        facts = _read(folder / "run.json")
        if facts.get("error") in GIVEN_UP:
            return Ending("failed", str(facts.get("message", "")))
        return Ending("open")

    def discard(self) -> None:
        """Delete a study in which no cell has begun for good: its recipe was wrong."""
        with self.alone():
            if any(self.ending(cell).state != "open" for cell in self.cells()):
                return
            if any((self.run_of(cell) / "checkpoints").exists() for cell in self.cells()):
                return
            remove([self.path / STUDY, self.path / "recipe.toml", self.path / "runs"])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
