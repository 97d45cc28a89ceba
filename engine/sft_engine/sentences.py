"""Words that every message shares: suggestions, values as a recipe writes them, the full stop."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LONGEST_VALUE = 80
"""Characters after which a value is cut in a message."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean `x`?", or nothing if no known name is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


def choices(known: Iterable[str]) -> str:
    """Return "allowed: `a`, `b`", or nothing if there are none."""
    listed = ", ".join(f"`{name}`" for name in known)
    return f"allowed: {listed}" if listed else ""


def show_value(value: Any) -> str:
    """Write a value the way a recipe does, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def reason_of(error: OSError) -> str:
    """Say why a file could not be written, and what to do about it: two parts of a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return f"{why}; make room"
    if error.errno == errno.EFBIG:
        return "the file would be larger than the system allows; raise the limit (`ulimit -f`)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{(error.strerror or 'no permission').lower()}; make it writable"
    return f"{(error.strerror or str(error)).lower()}; put that right"


def closed(text: str) -> str:
    """End a sentence with a full stop, unless it ends already."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
