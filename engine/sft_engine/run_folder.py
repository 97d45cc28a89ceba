"""Which folder a run writes to: asked for or the first free one, and fit for use before anything is built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sft_engine.errors import OutputError
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from sft_engine.catalog import Plan


def choose_folder(plan: Plan, output: str | Path | None) -> Path:
    """Return the run folder: the one asked for, or the first free `runs/NAME`.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    name = plan.recipe.path.stem if plan.recipe.path else "run"
    folder = Path("runs", name) if output is None else Path(output)
    try:
        number = 1
        while output is None and _holds_something(folder):
            number += 1
            folder = Path("runs", f"{name}-{number}")
        _require_usable(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be the run folder: {reason_of(error)}, or choose another with --output"
        ) from error
    return folder


def _require_usable(folder: Path) -> None:
    parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not parent.is_dir():
        what = "it" if parent == folder else parent
        raise OutputError(
            f"{folder} cannot be the run folder: {what} is a file; choose another with --output"
        )
    if _holds_something(folder):
        other = (
            f", or go on with the run in it by `sft-engine resume {folder}`"
            if (folder / "recipe.toml").exists()
            else ""
        )
        raise OutputError(f"{folder} is not empty: choose another folder with --output{other}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder} cannot be written: no permission in {parent}; choose another with --output"
        )
    usage = shutil.disk_usage(parent)
    if usage.total and usage.free < 1 << 20:  # file systems without disk have no total
        raise OutputError(
            f"{folder} cannot be written: the disk is full; make room, or choose another with --output"
        )


def _holds_something(folder: Path) -> bool:
    """Say whether a folder holds more than what a killed process had not finished to write."""
    return folder.is_dir() and any(not p.name.startswith(".tmp-") for p in folder.iterdir())
