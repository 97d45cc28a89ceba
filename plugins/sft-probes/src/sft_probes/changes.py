"""Changes of texts that only probes make: words, punctuation, white space, look-alikes, the end cut off.

Each is a pure function of text, strength and generator. What is hit is drawn first, for all places at once:
with the same generator, what is hit at a low rate is hit at a higher one too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from sft_probes.homoglyphs import LOOK_ALIKES

if TYPE_CHECKING:
    from numpy.random import Generator

MARKS = ".,;:!?"
"""Punctuation marks that are put in."""

WordChange = Literal["delete", "double", "swap", "replace"]
WORD_CHANGES: tuple[WordChange, ...] = ("delete", "double", "swap", "replace")

Side = Literal["end", "start", "both"]


def word_noise(
    text: str,
    rate: float,
    draws: Generator,
    kinds: Sequence[WordChange] = WORD_CHANGES,
) -> str:
    """Return the text with each word hit with probability `rate`.

    A hit word is lost (`delete`), said twice (`double`), changes places with the next one (`swap`) or becomes
    another word of the same text (`replace`). Where words change, white space becomes single spaces; one word
    at least stays.

    Args:
        text: Any text.
        rate: Probability of each word, 0..1; 0 returns the text itself.
        draws: Source of randomness.
        kinds: Which changes, each equally likely.
    """
    words = text.split()
    changed = list(words)
    for place in _hits(range(len(words)), rate, draws):
        kind = kinds[int(draws.integers(len(kinds)))]
        if kind == "delete":
            changed[place] = ""
        elif kind == "double":
            changed[place] = f"{changed[place]} {words[place]}".strip()
        elif kind == "swap" and place + 1 < len(words):
            changed[place], changed[place + 1] = changed[place + 1], changed[place]
        else:
            changed[place] = words[int(draws.integers(len(words)))]
    kept = [word for word in changed if word] or words[:1]
    return text if kept == words else " ".join(kept)


def punctuation(text: str, rate: float, draws: Generator) -> str:
    """Return the text with punctuation marks lost, and put behind words that have none.

    Each mark goes, and each word that no mark follows gets one of `MARKS`, with probability `rate`.
    """
    letters = list(text)
    places = _punctuation_places(text)
    for place in _hits(places, rate, draws):
        if _is_mark(letters[place]):
            letters[place] = ""
        else:
            letters[place] += MARKS[int(draws.integers(len(MARKS)))]
    return "".join(letters)


def _punctuation_places(text: str) -> list[int]:
    """Return where marks are, and where words end that no mark follows."""
    following = f"{text[1:]} "
    return [
        place
        for place, (letter, after) in enumerate(zip(text, following, strict=False))
        if _is_mark(letter) or (letter.isalnum() and after.isspace())
    ]


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("P")


def whitespace(text: str, rate: float, draws: Generator) -> str:
    """Return the text with words joined, spaces doubled, and words split.

    Each gap between words, with probability `rate`, is closed or gets one more space; and each word of two
    letters or more, with the same probability, is split in two.
    """
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if _is_gap(parts, i) or _can_split(part)]
    for place in _hits(places, rate, draws):
        part = parts[place]
        if not part.isspace():
            at = int(draws.integers(1, len(part)))
            parts[place] = f"{part[:at]} {part[at:]}"
        else:
            parts[place] = "" if draws.integers(2) else f"{part} "
    return "".join(parts)


def _is_gap(parts: Sequence[str], place: int) -> bool:
    """Say whether there is white space between two words."""
    inside = 0 < place < len(parts) - 1
    return inside and parts[place].isspace() and bool(parts[place - 1] and parts[place + 1])


def _can_split(part: str) -> bool:
    return len(part) > 1 and not part.isspace()


def homoglyphs(text: str, rate: float, draws: Generator) -> str:
    """Return the text with letters replaced by some that look alike, each with probability `rate`.

    Unicode calls them confusables (Technical Standard 39); the table is a small one of our own.
    """
    letters = list(text)
    places = [place for place, letter in enumerate(text) if letter in LOOK_ALIKES]
    for place in _hits(places, rate, draws):
        others = LOOK_ALIKES[letters[place]]
        letters[place] = others[int(draws.integers(len(others)))]
    return "".join(letters)


def truncated(text: str, share: float, side: Side = "end") -> str:
    """Return the text without a share of its words, rounded down; one word at least stays.

    Args:
        text: Any text; white space between the words that stay is kept.
        share: How much goes, 0..1.
        side: Where: at the `end`, at the `start`, or half at each (`both`).
    """
    words = list(re.finditer(r"\S+", text))
    gone = min(math.floor(share * len(words) + 1e-9), len(words) - 1)
    if gone < 1:
        return text
    first = {"end": 0, "start": gone, "both": gone // 2}[side]
    last = first + len(words) - gone - 1
    begin = words[first].start() if first else 0
    end = words[last].end() if last < len(words) - 1 else len(text)
    return text[begin:end]


def _hits(places: Sequence[int], rate: float, draws: Generator) -> list[int]:
    hit = draws.random(len(places)) < rate
    return [int(place) for place in np.asarray(places, dtype=np.int64)[hit]]
