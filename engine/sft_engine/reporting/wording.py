"""Words and numbers of reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def decimals_of(values: Iterable[Any]) -> int | None:
    """Return with how many decimals to write numbers that stand below each other; None to write each by itself.

    That is if somebody chose them, such as severities, or if no number of decimals shows both the least
    and the largest.
    """
    floats = [v for v in values if isinstance(v, float) and math.isfinite(v)]
    sizes = [abs(v) for v in floats if v]
    if not sizes or all(len(repr(v)) <= _SHORT for v in floats):
        return None
    least, largest = min(sizes), max(sizes)
    if largest < _SMALL or largest >= _LARGE or least < _SMALL * largest:
        return None
    return _DIGITS if largest <= 1 else _DIGITS - 1 - math.floor(math.log10(largest))


def number(value: Any, decimals: int | None = None) -> str:
    """Write a number for a person: whole ones as they are, four significant digits else.

    Args:
        value: A number; words are given back as they are.
        decimals: As `decimals_of` says for a column.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "NaN")
    return _by_itself(value) if decimals is None else f"{value:.{decimals}f}"


def _by_itself(value: float) -> str:
    if value == round(value) and abs(value) < _WHOLE:
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
