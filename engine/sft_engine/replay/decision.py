"""Whether replay pays: a rule over measured figures, and the line that says what was decided and why."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sft_engine.errors import OutputError
from sft_engine.records import write_json

RATIO = 1.2
"""Least speed-up of a step for which it is worth the memory: smaller ones drown in noise."""
SAVING = 1.0
"""Least seconds that have to be saved in the rest of the run."""
DISK_SHARE = 0.2
"""Largest share of the free disk."""
SLOW_READING = 0.5
"""Largest share of the time of the frozen part that fetching from a file may take."""

Place = Literal["memory", "file", "nowhere"]


@dataclass(frozen=True)
class Figures:
    """What was measured, in seconds an example.

    Args:
        frozen: The frozen part of the forward pass.
        rest: Everything else of a training step: what trains, loss and backward pass.
        fetch: Getting activations out of the store.
        keep: Putting them in.
    """

    frozen: float
    rest: float
    fetch: float
    keep: float

    @property
    def ratio(self) -> float:
        """How much longer a full step takes than a replayed one."""
        return (self.frozen + self.rest) / max(self.rest + self.fetch, 1e-12)


@dataclass(frozen=True)
class Amounts:
    """How much there is to do and to keep.

    Args:
        examples: In the training split.
        epochs: Left in the run, or in its phase, the current one included.
        bytes: Of one example.
        place: Where the activations fit.
    """

    examples: int
    epochs: float
    bytes: float
    place: Place

    @property
    def passes(self) -> float:
        """Passes over the examples in which nothing would have to be computed."""
        return max(self.epochs - 1.0, 0.0)


@dataclass(frozen=True)
class Decision:
    """On or off, and the line that says why."""

    on: bool
    line: str


def decide(figures: Figures, amounts: Amounts) -> Decision:
    """Decide whether replay pays for the rest of the run.

    Args:
        figures: Measured on the first micro-batches.
        amounts: Of the run.
    """
    a, f = amounts, figures
    saved = a.examples * (a.passes * (f.frozen - f.fetch) - f.keep)
    needed = max(SAVING, 1.2 * a.examples * f.keep)
    said = (
        f"{_ms(f.frozen)} of {_ms(f.frozen + f.rest)} a training example is the frozen part, "
        f"fetching takes {_ms(f.fetch)} ({f.ratio:.1f}x faster steps), {a.epochs:.3g} epochs left, "
        f"{readable(a.bytes)} an example, {readable(a.bytes * a.examples)} in all"
    )
    if a.place == "nowhere":
        return Decision(on=False, line=f"replay is off: neither memory nor disk has room ({said})")
    if f.ratio < RATIO:
        return Decision(on=False, line=f"replay is off: a step would hardly be faster ({said})")
    if a.place == "file" and f.fetch > SLOW_READING * f.frozen:
        return Decision(on=False, line=f"replay is off: reading the file takes too long ({said})")
    if saved <= needed:
        least = f"{max(saved, 0.0):.1f} s, less than {needed:.1f} s"
        return Decision(on=False, line=f"replay is off: it would save {least} ({said})")
    return Decision(
        on=True, line=f"replay is on, in {_where(a.place)}: saves about {saved:.0f} s ({said})"
    )


def _where(place: Place) -> str:
    return "memory" if place == "memory" else "a file of the run folder"


def place_for(size: float, folder: Path, memory_share: float) -> Place:
    """Return where so many bytes fit: in a share of the free memory, else of the free disk."""
    if size <= memory_share * free_memory():
        return "memory"
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    return "file" if size <= DISK_SHARE * shutil.disk_usage(parent).free else "nowhere"


def free_memory() -> int:
    """Return the bytes of memory that are available."""
    import psutil

    return int(psutil.virtual_memory().available)


def readable(size: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


# --- remembering ----------------------------------------------------------------------------------


def remembered(key: str) -> Decision | None:
    """Return what was decided for the same recipe on this machine before, so that runs are equal."""
    try:
        saved: dict[str, Any] = json.loads(_path(key).read_text(encoding="utf-8"))
        return Decision(bool(saved["on"]), str(saved["line"]))
    except (OSError, ValueError, KeyError):
        return None


def remember(key: str, decision: Decision) -> None:
    """Keep a decision for the next run of the same recipe; without a cache folder, do not."""
    with contextlib.suppress(OSError, OutputError):
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(key), {"on": decision.on, "line": decision.line})


def _path(key: str) -> Path:
    from platformdirs import user_cache_dir

    root = os.environ.get("SFT_ENGINE_CACHE") or user_cache_dir("sft-engine", appauthor=False)
    return Path(root, "replay", f"{key}.json")
