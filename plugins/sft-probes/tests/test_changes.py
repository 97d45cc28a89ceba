"""Changes of texts: how many, of which kind, nothing at rate 0, nested from rate to rate."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_engine.texts import synonyms
from sft_engine.texts.characters import character_noise, keyboard_typos
from sft_engine.texts.words import in_place_of, synonym_swap, word_dropout
from sft_probes.changes import (
    homoglyphs,
    punctuation,
    truncated,
    whitespace,
    word_noise,
)
from sft_probes.homoglyphs import LOOK_ALIKES

SENTENCE = "The quick movie, said Mary, was a big story and it began well. "
TEXT = SENTENCE * 200
TABLE = synonyms.builtin()
ODD = [
    "",
    " ",
    "\n\t ",
    "<b>Hello</b> &amp; <script>alert('x')</script>",
    "日本語 テキスト",
    "a",
    "!?",
]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def swapped(text, rate, draws):
    return synonym_swap(text, rate, draws, TABLE)


RATED = {
    "typos": keyboard_typos,
    "characters": character_noise,
    "words": word_noise,
    "dropout": word_dropout,
    "punctuation": punctuation,
    "whitespace": whitespace,
    "homoglyphs": homoglyphs,
    "synonyms": swapped,
}


def within(count: int, trials: int, rate: float) -> bool:
    """Whether a count is within three standard deviations of a binomial distribution."""
    return abs(count - trials * rate) < 3 * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("change", RATED.values(), ids=RATED)
@pytest.mark.parametrize("text", [TEXT, *ODD])
def test_rate_0_is_the_text_itself(change, text: str) -> None:
    assert change(text, 0.0, generator()) == text


@pytest.mark.parametrize("change", RATED.values(), ids=RATED)
@given(st.text(), st.floats(0, 1), st.integers(0, 2**32))
def test_any_text_gives_a_text_and_the_generator_alone_decides(change, text, rate, seed) -> None:
    changed = change(text, rate, generator(seed))
    np.random.seed(1)
    assert change(text, rate, generator(seed)) == changed


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_homoglyphs_hit_with_the_rate_and_look_alike(rate: float) -> None:
    changed = homoglyphs(TEXT, rate, generator())
    pairs = [(a, b) for a, b in zip(TEXT, changed, strict=True) if a != b]
    assert within(len(pairs), sum(letter in LOOK_ALIKES for letter in TEXT), rate)
    assert all(b in LOOK_ALIKES[a] for a, b in pairs)


def test_look_alikes_are_letters_of_other_alphabets_in_the_same_case() -> None:
    for letter, others in LOOK_ALIKES.items():
        assert letter.isascii()
        assert others
        for other in others:
            assert not other.isascii()
            assert other.isalpha()
            assert other.isupper() == letter.isupper()


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_words_go_and_are_doubled_with_the_rate(rate: float) -> None:
    words = len(TEXT.split())
    gone = words - len(word_noise(TEXT, rate, generator(), ("delete",)).split())
    more = len(word_noise(TEXT, rate, generator(1), ("double",)).split()) - words
    assert within(gone, words, rate)
    assert within(more, words, rate)


def test_kinds_of_word_noise_are_equally_likely() -> None:
    """Lost words and doubled ones each take a quarter of the hits: the number stays, but for chance."""
    words = len(TEXT.split())
    left = len(word_noise(TEXT, 0.4, generator()).split())
    assert abs(left - words) < 3 * math.sqrt(words * 0.4 / 2)


def test_swapped_and_replaced_words_are_of_the_text() -> None:
    text = " ".join(f"w{i}" for i in range(2000))
    swap = word_noise(text, 0.1, generator(), ("swap",)).split()
    assert Counter(swap) == Counter(text.split())
    assert swap != text.split()
    replaced = word_noise(text, 0.1, generator(), ("replace",)).split()
    assert set(replaced) < set(text.split())
    assert len(replaced) == 2000


def test_marks_go_and_come_with_the_rate() -> None:
    marks = sum(letter in ",." for letter in TEXT)
    bare = sum(word[-1].isalnum() for word in TEXT.split())
    only_marks = punctuation(",." * 1000, 0.2, generator())
    assert within(2000 - len(only_marks), 2000, 0.2)
    only_words = punctuation("word " * 2000, 0.2, generator())
    assert within(len(only_words) - 10_000, 2000, 0.2)
    changed = punctuation(TEXT, 1.0, generator())
    assert sum(letter in ".,;:!?" for letter in changed) == bare
    assert marks == 600


def test_gaps_and_words_are_hit_with_the_rate() -> None:
    text = "ab " * 3000 + "ab"
    changed = whitespace(text, 0.2, generator())
    assert changed.replace(" ", "") == text.replace(" ", "")
    assert within(changed.count("a b"), 3001, 0.2)
    joined, doubled = changed.count("bab") + changed.count("ba b"), changed.count("b  a")
    assert within(joined + doubled, 3000, 0.2)
    assert within(joined, joined + doubled, 0.5)


def test_synonyms_are_swapped_with_the_rate_and_keep_case_and_gaps() -> None:
    text = "Big, movie\t" * 2000
    changed = swapped(text, 0.3, generator())
    hit = sum(a != b for a, b in zip(text.split(), changed.split(), strict=True))
    assert within(hit, 4000, 0.3)
    assert changed.count("\t") == 2000
    assert set(changed.split()) == {"Big,", "Large,", "movie", "film", "picture"}
    assert in_place_of("Big,", TABLE) == ["Large,"]
    assert in_place_of("xyzzy", TABLE) == []


@pytest.mark.parametrize(
    ("share", "side", "left"),
    [
        (0.5, "end", "one  two"),
        (0.5, "start", "three four"),
        (0.5, "both", "two three"),
        (0.3, "end", "one  two three"),
        (1.0, "end", "one"),
        (0.1, "end", "one  two three four"),
    ],
)
def test_truncation_leaves_words_and_at_least_one(share, side, left) -> None:
    assert truncated("one  two three four", share, side) == left


@given(st.text(), st.floats(0, 1), st.sampled_from(["end", "start", "both"]))
def test_what_is_left_is_a_part_of_the_text(text, share, side) -> None:
    left = truncated(text, share, side)
    assert left in text
    words = len(text.split())
    assert len(left.split()) == max(min(1, words), words - math.floor(share * words + 1e-9))


@pytest.mark.parametrize("name", ["typos", "homoglyphs", "synonyms"])
def test_what_is_hit_at_a_low_rate_is_hit_at_a_higher_one(name: str) -> None:
    kinds = {"kinds": ("substitute",)} if name == "typos" else {}
    low, high = (RATED[name](TEXT, rate, generator(5), **kinds) for rate in (0.05, 0.3))
    if name == "synonyms":
        low, high, text = low.split(), high.split(), TEXT.split()
    else:
        text = TEXT
    hit_low = {i for i, (a, b) in enumerate(zip(text, low, strict=True)) if a != b}
    hit_high = {i for i, (a, b) in enumerate(zip(text, high, strict=True)) if a != b}
    assert hit_low
    assert hit_low < hit_high
