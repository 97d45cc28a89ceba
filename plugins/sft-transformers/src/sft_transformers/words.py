"""Which word of its text each token is of, for those who add up what tokens weigh."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import Any

Span = tuple[int, int, int]
"""Which text of the input (0 or 1), and begin and end of a word in it, in characters."""

_PIECE = re.compile(r"\S+")


def word_spans(encoding: Any, texts: Sequence[str]) -> list[Span | None]:
    """Return the word of each token; None for tokens of the tokenizer's own, and for mere spaces.

    A word is what the tokenizer cuts a text into first, such as at punctuation, and never goes across a
    space: some tokenizers cut nowhere first.

    Args:
        encoding: Of one input, by the tokenizers library.
        texts: The one or two texts of the input.
    """
    starts = [[found.start() for found in _PIECE.finditer(text)] for text in texts]
    keys = [_key(encoding, place, texts, starts) for place in range(len(encoding.ids))]
    spans: dict[Any, Span] = {}
    for key in keys:
        if key is not None:
            which, begin, end = key[0], *key[-1]
            before = spans.get(key[:-1], (which, begin, end))
            spans[key[:-1]] = (which, min(before[1], begin), max(before[2], end))
    return [None if key is None else spans[key[:-1]] for key in keys]


def _key(
    encoding: Any, place: int, texts: Sequence[str], starts: Sequence[Sequence[int]]
) -> tuple[int, Any, int, tuple[int, int]] | None:
    """Return text, word of the tokenizer, piece between spaces and characters of a token."""
    which = encoding.sequence_ids[place]
    if which is None or encoding.special_tokens_mask[place]:
        return None
    begin, end = _stripped(texts[which], *encoding.offsets[place])
    if begin >= end:
        return None
    piece = bisect.bisect_right(starts[which], begin)
    return which, encoding.word_ids[place], piece, (begin, end)


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    """Leave out the spaces that a tokenizer counts with the token behind them."""
    part = text[begin:end]
    return begin + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
