"""Errors in single characters: those of a hand on a keyboard, and those of no one in particular."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator

Kind = Literal["substitute", "insert", "delete", "swap"]
KINDS: tuple[Kind, ...] = ("substitute", "insert", "delete", "swap")

ALPHABET = "abcdefghijklmnopqrstuvwxyz"

Layout = Literal["qwerty", "qwertz", "azerty"]
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}
_SHIFTS = (0.0, 0.25, 0.75)
"""How far each row of keys begins to the right of the first one, in keys."""


def neighbours(layout: str) -> dict[str, str]:
    """Return, for each letter of a keyboard, the letters whose keys touch its key."""
    keys = {
        letter: (column + shift, row)
        for row, (letters, shift) in enumerate(zip(LAYOUTS[layout], _SHIFTS, strict=True))
        for column, letter in enumerate(letters)
    }
    touching: dict[str, str] = dict.fromkeys(keys, "")
    for (one, (x, y)), (other, (v, w)) in itertools.permutations(keys.items(), 2):
        if abs(x - v) <= 1 and abs(y - w) <= 1:
            touching[one] += other
    return touching


_NEIGHBOURS = {layout: neighbours(layout) for layout in LAYOUTS}


def keyboard_typos(
    text: str,
    rate: float,
    draws: Generator,
    *,
    layout: str = "qwerty",
    kinds: Sequence[Kind] = KINDS,
    keep_ends: bool = False,
) -> str:
    """Return the text with typing errors.

    Each letter that is on the keyboard is hit with probability `rate`. A hit letter becomes one whose key
    touches its own (`substitute`), gets such a letter behind it (`insert`), is left out (`delete`), or
    changes places with the next letter (`swap`; a substitution where no letter follows). Case is kept.

    Args:
        text: Any text; what is not a letter of the keyboard stays.
        rate: Probability of each letter to be hit, 0..1; 0 returns the text itself.
        draws: Source of randomness.
        layout: A key of `LAYOUTS`.
        kinds: Which errors, each equally likely.
        keep_ends: Leave the first and the last letter of each word alone, as readers rely on them.
    """
    touching = _NEIGHBOURS[layout]

    def stranger(letter: str) -> str:
        near = touching[letter.lower()]
        found = near[int(draws.integers(len(near)))]
        return found.upper() if letter.isupper() else found

    places = _places(text, lambda letter: letter.lower() in touching, keep_ends=keep_ends)
    return _edited(text, places, rate, draws, kinds, stranger)


def character_noise(
    text: str,
    rate: float,
    draws: Generator,
    *,
    alphabet: str = ALPHABET,
    kinds: Sequence[Kind] = KINDS,
    keep_ends: bool = False,
) -> str:
    """Return the text with random errors in any character but white space.

    As `keyboard_typos`, but what is put in or put in place is any character of the alphabet.

    Args:
        text: Any text.
        rate: Probability of each character to be hit, 0..1; 0 returns the text itself.
        draws: Source of randomness.
        alphabet: Characters that may appear.
        kinds: Which errors, each equally likely.
        keep_ends: Leave the first and the last character of each word alone.
    """

    def stranger(_: str) -> str:
        return alphabet[int(draws.integers(len(alphabet)))]

    places = _places(text, lambda letter: not letter.isspace(), keep_ends=keep_ends)
    return _edited(text, places, rate, draws, kinds, stranger)


def _places(text: str, fits: Callable[[str], bool], *, keep_ends: bool) -> list[int]:
    """Return the positions that may be hit."""
    places = [place for place, letter in enumerate(text) if fits(letter)]
    if not keep_ends:
        return places
    padded = f" {text} "
    return [p for p in places if padded[p].isalnum() and padded[p + 2].isalnum()]


def _edited(
    text: str,
    places: list[int],
    rate: float,
    draws: Generator,
    kinds: Sequence[Kind],
    stranger: Callable[[str], str],
) -> str:
    hits = np.asarray(places, dtype=np.int64)[draws.random(len(places)) < rate].tolist()
    letters, open_places = list(text), set(places)
    moved = -1
    for place in hits:
        if place == moved:
            continue  # the swap before it was its error
        kind = kinds[int(draws.integers(len(kinds)))]
        if kind == "swap" and place + 1 in open_places:
            moved = place + 1
            letters[place], letters[moved] = letters[moved], letters[place]
        elif kind == "delete":
            letters[place] = ""
        elif kind == "insert":
            letters[place] += stranger(letters[place])
        else:
            letters[place] = stranger(letters[place])
    return "".join(letters)
