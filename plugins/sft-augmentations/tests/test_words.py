"""Changes of words: what each operation does, how often, and what it leaves."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_augmentations.paraphrases import Paraphrases, paraphrase, read_wordings
from sft_engine import DataError
from sft_engine.texts import synonyms
from sft_engine.texts.words import (
    OPERATIONS,
    casing,
    delete_words,
    eda,
    insert_synonyms,
    replace_synonyms,
    swap_words,
    word_dropout,
)

WORDS = [f"w{i}" for i in range(5000)]
TABLE = {"big": ("large",), "fast": ("quick", "rapid")}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_each_word_goes_with_the_rate() -> None:
    left = delete_words(WORDS, 0.1, generator())
    gone = len(WORDS) - len(left)
    assert abs(gone - 500) < 4 * math.sqrt(5000 * 0.1 * 0.9)
    assert left == [word for word in WORDS if word in set(left)]  # the order stays


def test_a_token_stands_for_what_has_gone() -> None:
    text = word_dropout(" ".join(WORDS), 0.3, generator(), token="[MASK]")
    plain = word_dropout(" ".join(WORDS), 0.3, generator())
    assert len(text.split()) == len(WORDS)
    assert [word for word in text.split() if word != "[MASK]"] == plain.split()


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(0, 2**32))
def test_one_word_always_stays(words: list[str], seed: int) -> None:
    left = delete_words(words, 1.0, generator(seed))
    assert len(left) == 1
    assert left[0] in words


@given(st.text(), st.integers(0, 2**32))
def test_no_rate_no_change(text: str, seed: int) -> None:
    assert word_dropout(text, 0.0, generator(seed)) == text
    assert eda(text, 0.0, generator(seed), TABLE) == text


def test_swaps_keep_the_words() -> None:
    words = list("abcdefgh")
    assert swap_words(["one"], 3, generator()) == ["one"]
    once = swap_words(words, 1, generator())
    assert sum(a != b for a, b in zip(words, once, strict=True)) == 2
    assert sorted(swap_words(words, 9, generator())) == words


def test_synonyms_keep_case_and_punctuation() -> None:
    changed = replace_synonyms(["(Big", "BIG", "big,", "tiny"], 4, generator(), TABLE)
    assert changed == ["(Large", "LARGE", "large,", "tiny"]


def test_as_many_words_are_replaced_as_asked_for() -> None:
    changed = replace_synonyms(["fast"] * 100, 7, generator(), TABLE)
    assert 100 - changed.count("fast") == 7
    assert set(changed) == {"fast", "quick", "rapid"}


def test_insertions_are_synonyms_of_words_of_the_text() -> None:
    changed = insert_synonyms(["a", "fast", "car"], 5, generator(), TABLE)
    assert [word for word in changed if word in ("a", "fast", "car")] == ["a", "fast", "car"]
    assert len(changed) == 8
    assert set(changed) <= {"a", "fast", "car", "quick", "rapid"}
    assert insert_synonyms(["a", "car"], 5, generator(), TABLE) == ["a", "car"]


def test_eda_takes_one_operation_drawn_evenly() -> None:
    """The four results of this text are told apart by length and words."""
    text = "w1 w2 big w3 w4 w5 w6 w7 w8 w9"
    seen: Counter[str] = Counter()
    for seed in range(2000):
        words = eda(text, 0.1, generator(seed), TABLE).split()
        if len(words) == 11:
            seen["insert"] += 1
        elif "large" in words:
            seen["synonym"] += 1
        elif len(words) == 10 and words != text.split():
            seen["swap"] += 1
        else:
            seen["delete"] += 1
    assert set(seen) == set(OPERATIONS)
    assert all(abs(count - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75) for count in seen.values())


def test_casing() -> None:
    assert casing("Don't PANIC  now", "lower") == "don't panic  now"
    assert casing("Don't panic  now", "upper") == "DON'T PANIC  NOW"
    assert casing("don't panic  now", "title") == "Don't Panic  Now"


# --- tables ----------------------------------------------------------------------------------------


def test_the_builtin_table_is_symmetric_and_says_nothing_of_itself() -> None:
    table = synonyms.builtin()
    assert len(table) > 400
    for word, others in table.items():
        assert others
        assert word not in others
        assert all(word in table[other] for other in others)
        assert word == word.lower()


def test_a_table_of_the_user(tmp_path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("# cars\nauto, car\n\nParis, the capital of France\n", encoding="utf-8")
    table = synonyms.read(str(path))
    assert table == {
        "auto": ("car",),
        "car": ("auto",),
        "paris": ("the capital of France",),
        "the capital of france": ("Paris",),
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a, b\nlonely\n", "line 2: 'lonely' is no group"),
        ("a,,b", "line 1"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_table_is_named(tmp_path, content: str | None, says: str) -> None:
    path = tmp_path / "synonyms.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        synonyms.read(str(path))


# --- paraphrases -----------------------------------------------------------------------------------


def test_wordings_are_drawn_evenly() -> None:
    draws = generator()
    wordings = {"hello": ("hi", "hey")}
    seen = Counter(paraphrase(" hello ", wordings, draws) for _ in range(1000))
    assert set(seen) == {"hi", "hey"}
    assert abs(seen["hi"] - 500) < 4 * math.sqrt(250)
    assert paraphrase(" other ", wordings, draws) == " other "


def test_lines_with_one_text_are_joined(tmp_path) -> None:
    path = tmp_path / "back.jsonl"
    lines = [
        {"text": "a", "alternatives": ["b"]},
        {"text": " a", "alternatives": ["c"]},
        {"text": "d", "alternatives": []},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    assert read_wordings(str(path)) == {"a": ("b", "c")}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "no json",
        '{"text": "a"}',
        '{"text": 1, "alternatives": []}',
        '{"text": "a", "alternatives": [1]}',
    ],
)
def test_a_broken_line_is_named(tmp_path, line: str) -> None:
    path = tmp_path / "back.jsonl"
    path.write_text('{"text": "a", "alternatives": ["b"]}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match="line 2: found"):
        Paraphrases(str(path)).check()
