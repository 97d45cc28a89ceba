"""Changes of whole words: synonyms, insertions, swaps, deletions, casing.

EDA is of Wei and Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
Classification Tasks", section 2. White space of a changed text becomes single spaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from numpy.random import Generator

Synonyms = Mapping[str, Sequence[str]]
"""Other words for a word in small letters."""

Operation = Literal["synonym", "insert", "swap", "delete"]
OPERATIONS: tuple[Operation, ...] = ("synonym", "insert", "swap", "delete")

Style = Literal["lower", "upper", "title"]
STYLES: tuple[Style, ...] = ("lower", "upper", "title")

_WORD = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


def eda(
    text: str,
    rate: float,
    draws: Generator,
    synonyms: Synonyms,
    operations: Sequence[Operation] = OPERATIONS,
) -> str:
    """Return the text after one of EDA's operations, drawn evenly.

    `synonym` and `insert` use, and `swap` makes, `max(1, int(rate * words))` changes, as the authors' code
    does; `delete` drops each word with probability `rate`.

    Args:
        text: Any text; one without words is returned as it is.
        rate: Share of words that change (alpha of the paper); 0 returns the text itself.
        draws: Source of randomness.
        synonyms: Other words for a word.
        operations: Which operations.
    """
    words = text.split()
    if rate <= 0 or not words or not operations:
        return text
    operation = operations[int(draws.integers(len(operations)))]
    count = max(1, int(rate * len(words)))
    if operation == "synonym":
        changed = replace_synonyms(words, count, draws, synonyms)
    elif operation == "insert":
        changed = insert_synonyms(words, count, draws, synonyms)
    elif operation == "swap":
        changed = swap_words(words, count, draws)
    else:
        changed = delete_words(words, rate, draws)
    return text if changed == words else " ".join(changed)


def replace_synonyms(
    words: Sequence[str], count: int, draws: Generator, synonyms: Synonyms
) -> list[str]:
    """Replace up to `count` words, all different ones, by a synonym; case and punctuation stay."""
    known = [place for place, word in enumerate(words) if _bare(word) in synonyms]
    chosen = draws.permutation(len(known))[:count]
    changed = list(words)
    for place in (known[index] for index in chosen.tolist()):
        changed[place] = _replaced(words[place], draws, synonyms)
    return changed


def insert_synonyms(
    words: Sequence[str], count: int, draws: Generator, synonyms: Synonyms
) -> list[str]:
    """Put synonyms of `count` random words of the text at random places."""
    known = [_bare(word) for word in words if _bare(word) in synonyms]
    changed = list(words)
    for _ in range(count if known else 0):
        others = synonyms[known[int(draws.integers(len(known)))]]
        new = others[int(draws.integers(len(others)))]
        changed.insert(int(draws.integers(len(changed) + 1)), new)
    return changed


def swap_words(words: Sequence[str], count: int, draws: Generator) -> list[str]:
    """Let two random words change places, `count` times."""
    changed = list(words)
    for _ in range(count if len(words) > 1 else 0):
        one, other = draws.choice(len(changed), size=2, replace=False).tolist()
        changed[one], changed[other] = changed[other], changed[one]
    return changed


def delete_words(words: Sequence[str], rate: float, draws: Generator, token: str = "") -> list[str]:
    """Drop each word with probability `rate`; of a text that would be empty one random word stays.

    Args:
        words: The words.
        rate: Probability, 0..1.
        draws: Source of randomness.
        token: Stands for a dropped word; empty for nothing.
    """
    dropped = draws.random(len(words)) < rate
    if len(words) and dropped.all():
        dropped[int(draws.integers(len(words)))] = False
    kept = [token if gone else word for word, gone in zip(words, dropped, strict=True)]
    return [word for word in kept if word]


def word_dropout(text: str, rate: float, draws: Generator, token: str = "") -> str:
    """Return the text with each word dropped, or replaced by a token, with probability `rate`.

    Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification",
    section 3.2.
    """
    words = text.split()
    changed = delete_words(words, rate, draws, token)
    return text if changed == words else " ".join(changed)


def synonym_swap(text: str, rate: float, draws: Generator, synonyms: Synonyms) -> str:
    """Return the text with each word that has synonyms replaced by one with probability `rate`.

    Case, punctuation and white space stay.
    """
    parts = re.split(r"(\s+)", text)
    known = [place for place, word in enumerate(parts) if _bare(word) in synonyms]
    hits = draws.random(len(known)) < rate
    for place in (place for place, hit in zip(known, hits, strict=True) if hit):
        parts[place] = _replaced(parts[place], draws, synonyms)
    return "".join(parts)


def in_place_of(word: str, synonyms: Synonyms) -> list[str]:
    """Return the word with each of its synonyms in its place; case and punctuation stay."""
    return [_with(word, other) for other in synonyms.get(_bare(word), ())]


def casing(text: str, style: Style) -> str:
    """Return the text in small letters, in capitals, or with every word capitalised."""
    if style == "title":
        # Not `str.title`, which makes "Don'T" of "don't".
        return re.sub(r"(?<!\S)\S", lambda first: first[0].upper(), text)
    return text.upper() if style == "upper" else text.lower()


def _bare(word: str) -> str:
    """Return the word in small letters, without punctuation around it."""
    match = _WORD.match(word)
    return match[2].lower() if match else ""


def _replaced(word: str, draws: Generator, synonyms: Synonyms) -> str:
    others = synonyms[_bare(word)]
    return _with(word, others[int(draws.integers(len(others)))])


def _with(word: str, new: str) -> str:
    """Put another word between the punctuation around a word, in its case."""
    match = _WORD.match(word)
    assert match is not None  # it matches anything
    before, bare, after = match.groups()
    if bare.isupper() and len(bare) > 1:
        new = new.upper()
    elif bare[:1].isupper():
        new = new[:1].upper() + new[1:]
    return f"{before}{new}{after}"
