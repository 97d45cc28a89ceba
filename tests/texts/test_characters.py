"""Typing errors: how many, of which kind, and where they may not be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_engine.texts.characters import LAYOUTS, character_noise, keyboard_typos, neighbours

TEXT = "the quick brown fox jumps over the lazy dog " * 200
LETTERS = sum(letter.isalpha() for letter in TEXT)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def within(count: int, trials: int, rate: float) -> bool:
    """Whether a count is within four standard deviations of a binomial distribution."""
    return abs(count - trials * rate) < 4 * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_each_letter_is_hit_with_the_rate(rate: float) -> None:
    changed = keyboard_typos(TEXT, rate, generator(), kinds=("substitute",))
    pairs = [(a, b) for a, b in zip(TEXT, changed, strict=True) if a != b]
    assert within(len(pairs), LETTERS, rate)
    touching = neighbours("qwerty")
    assert all(b in touching[a] for a, b in pairs)


@pytest.mark.parametrize(("kind", "sign"), [("insert", 1), ("delete", -1)])
@pytest.mark.parametrize("change", [keyboard_typos, character_noise])
def test_lengths_change_by_the_rate(change, kind: str, sign: int) -> None:
    changed = change(TEXT, 0.1, generator(1), kinds=(kind,))
    assert within(sign * (len(changed) - len(TEXT)), LETTERS, 0.1)


def test_kinds_are_equally_likely() -> None:
    """Inserts and deletes each take a quarter of the hits: the length stays, but for chance."""
    sizes = [len(keyboard_typos("a" * 400, 0.2, generator(seed))) - 400 for seed in range(50)]
    hits = 50 * 400 * 0.2
    assert abs(sum(sizes)) < 4 * math.sqrt(hits / 2)
    assert any(sizes)


def test_a_swap_keeps_the_letters_and_their_number() -> None:
    changed = character_noise("abcdefgh", 1.0, generator(), kinds=("swap",))
    assert changed == "badcfehg"  # every hit letter with the next, which then has had its error


def test_keyboards_are_what_they_look_like() -> None:
    touching = neighbours("qwerty")
    assert set(touching["g"]) == set("ftyhvb")
    assert set(touching["q"]) == set("wa")
    assert set(neighbours("azerty")["a"]) == set("zq")
    for layout in LAYOUTS:
        found = neighbours(layout)
        assert all(a in found[b] for a in found for b in found[a])


@given(st.text(), st.floats(0, 1), st.integers(0, 2**32))
def test_case_stays_and_foreign_characters_too(text: str, rate: float, seed: int) -> None:
    changed = keyboard_typos(text, rate, generator(seed), kinds=("substitute",))
    assert len(changed) == len(text)
    for old, new in zip(text, changed, strict=True):
        assert new == old or (old.isascii() and old.isalpha() and new.isupper() == old.isupper())


@given(st.text(), st.integers(0, 2**32))
def test_no_rate_no_change(text: str, seed: int) -> None:
    assert keyboard_typos(text, 0.0, generator(seed)) == text
    assert character_noise(text, 0.0, generator(seed)) == text


def test_white_space_is_left_alone() -> None:
    changed = character_noise("a b\tc\nd", 1.0, generator(), alphabet="x", kinds=("substitute",))
    assert changed == "x x\tx\nx"


def test_ends_of_words_are_kept() -> None:
    changed = keyboard_typos(TEXT, 1.0, generator(), keep_ends=True, kinds=("substitute",))
    for old, new in zip(TEXT.split(), changed.split(), strict=True):
        assert (old[0], old[-1]) == (new[0], new[-1])
        assert all(a != b for a, b in zip(old[1:-1], new[1:-1], strict=True))


def test_the_generator_alone_decides() -> None:
    first = keyboard_typos(TEXT, 0.1, generator(3))
    np.random.seed(1)
    assert keyboard_typos(TEXT, 0.1, generator(3)) == first
    assert keyboard_typos(TEXT, 0.1, generator(4)) != first
