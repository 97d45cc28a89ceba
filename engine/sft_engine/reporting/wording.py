"""Words and numbers of reports."""

from __future__ import annotations

import math
from typing import Any

Point = dict[str, str]
"""A sentence of the verdict: `topic`, `level`, `text`, `command`."""

_DIGITS = 4
_WHOLE = 1e15
_SHORT = 6
_SMALL, _LARGE = 1e-3, 1e3
"""Outside of these, trailing zeros say nothing."""


def point(topic: str, level: str, text: str, command: str = "") -> Point:
    """Return a point of the verdict; the command is what would look into it."""
    return {"topic": topic, "level": level, "text": text.strip(), "command": command}


def number(value: Any) -> str:
    """Write a number for a person: whole ones as they are, four significant digits else."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "NaN")
    if value == round(value) and 1 <= abs(value) < _WHOLE:
        return f"{round(value):,}"
    if len(repr(value)) <= _SHORT:  # as somebody chose it, such as a severity
        return repr(value)
    return f"{value:#.{_DIGITS}g}" if _SMALL <= abs(value) < _LARGE else f"{value:.{_DIGITS}g}"


def brief(value: Any) -> str:
    """Write a number in a sentence: three significant digits."""
    if isinstance(value, float) and math.isfinite(value) and _SMALL <= abs(value) < _LARGE:
        return f"{value:#.3g}".removesuffix(".")
    return number(value)


def share(value: float) -> str:
    """Write a share in per cent; the space does not break."""
    return f"{100 * value:.1f}\u00a0%"
