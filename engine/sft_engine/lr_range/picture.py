"""A range test to look at: a picture by matplotlib, or characters on a terminal."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sft_engine.errors import OutputError
from sft_engine.records import write_asked

if TYPE_CHECKING:
    from sft_engine.lr_range.sweep import RangeTest

FORMATS = (".png", ".svg", ".json")
_MARGIN = 1.15
"""Above the highest loss before the explosion: the explosion itself would flatten all the rest."""


def check_output(path: Path) -> None:
    """Refuse, before anything is trained, a file that could not be written afterwards.

    Raises:
        OutputError: another ending than `FORMATS`, no such folder, or matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"--output {path}: found the ending {path.suffix!r}, allowed: {', '.join(FORMATS)}"
        )
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--output {path}: there is no folder {path.parent}; make it first")
    if path.suffix.lower() != ".json":
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError:
            raise OutputError(
                f"--output {path}: pictures need matplotlib, which is not installed; "
                "`pip install 'sft-engine[plot]'`, or write `--output FILE.json`: the terminal shows the "
                "curve in any case"
            ) from None


def write(result: RangeTest, path: Path) -> None:
    """Write a range test as the file's ending says, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    if path.suffix.lower() == ".json":
        content = (json.dumps(asdict(result), indent=2) + "\n").encode()
    else:
        content = picture(result, path.suffix.lower()[1:])
    write_asked(path, content)


def picture(result: RangeTest, form: str) -> bytes:
    """Draw loss against learning rate, with the suggestions, as a `png` or `svg`."""
    from matplotlib.figure import Figure  # not pyplot, whose figures are global and kept

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.lrs, result.losses, color="0.8", label="loss of the step")
    axes.plot(result.lrs, result.smoothed, color="C0", label="smoothed")
    for index, (name, lr) in enumerate(result.suggestions.items(), start=1):
        axes.axvline(lr, color=f"C{index}", linestyle="--", label=f"{name}: {lr:g}")
    axes.set(xscale="log", xlabel=f"learning rate ({result.key})", ylabel="loss")
    bottom, top = bounds(result.smoothed)
    room = (top - bottom) * (_MARGIN - 1) or 1.0
    axes.set_ylim(bottom - room, top + room)
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=120)
    return file.getvalue()


def bounds(losses: Sequence[float]) -> tuple[float, float]:
    """Return the lowest loss, and the highest one up to there: the part worth seeing."""
    lowest = min(range(len(losses)), key=losses.__getitem__)
    return losses[lowest], max(losses[: lowest + 1])


def text_plot(result: RangeTest, width: int = 64, height: int = 12) -> list[str]:
    """Return lines that show the smoothed loss against the learning rate.

    Args:
        result: At least one step of it.
        width: Columns of the curve.
        height: Rows of the curve.

    Returns:
        Rows with `*` for the loss and the first letter of each suggestion in its column; last the
        learning rates at both ends.
    """
    bottom, top = bounds(result.smoothed)
    top = max(bottom + (top - bottom) * _MARGIN, bottom + 1e-12)
    grid = [[" "] * width for _ in range(height)]
    for name, lr in result.suggestions.items():
        column = _column(lr, result.lrs, width)
        for row in grid:
            row[column] = name[0]
    for lr, loss in zip(result.lrs, result.smoothed, strict=True):
        share = min(max((top - loss) / (top - bottom), 0.0), 1.0)
        grid[round(share * (height - 1))][_column(lr, result.lrs, width)] = "*"
    labels = {0: f"{top:.4g}", height - 1: f"{bottom:.4g}"}
    lines = [f"{labels.get(i, ''):>9} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    first, last = f"{result.lrs[0]:.1e}", f"{result.lrs[-1]:.1e}"
    return [*lines, f"{'lr':>9}  {first}{last:>{width - len(first)}}", *_legend(result.suggestions)]


def _column(lr: float, lrs: Sequence[float], width: int) -> int:
    low, high = math.log(lrs[0]), math.log(lrs[-1])
    share = (math.log(lr) - low) / (high - low) if high > low else 0.0
    return round(min(max(share, 0.0), 1.0) * (width - 1))


def _legend(suggestions: Iterable[str]) -> list[str]:
    shown = ", ".join(f"{name[0]} {name}" for name in suggestions)
    return [f"{'':>9}  {shown}"] if shown else []
