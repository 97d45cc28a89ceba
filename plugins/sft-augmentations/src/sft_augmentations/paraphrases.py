"""Other wordings of training texts, made beforehand: by translation there and back, or by a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from sft_augmentations.texts import COLUMNS, TextAugmentation
from sft_engine import DataError, RecipeError

if TYPE_CHECKING:
    import numpy as np

    from sft_engine import Split

Wordings = Mapping[str, Sequence[str]]


def paraphrase(text: str, wordings: Wordings, draws: np.random.Generator) -> str:
    """Return one of the other wordings of a text, drawn evenly, or the text if there is none."""
    others = wordings.get(text.strip())
    return others[int(draws.integers(len(others)))] if others else text


def read_wordings(path: str) -> dict[str, tuple[str, ...]]:
    """Read a file with one JSON object a line: `{"text": "...", "alternatives": ["...", "..."]}`.

    Lines with the same text are joined.

    Raises:
        DataError: as `read_entries`.
    """
    wordings: dict[str, list[str]] = {}
    for text, others in read_entries(path):
        wordings.setdefault(text, []).extend(others)
    return {text: tuple(others) for text, others in wordings.items() if others}


def read_entries(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the text and the other wordings of each line of such a file.

    Raises:
        DataError: no such file, or a line that is not of that form, with its number.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(
            f"path = '{path}' of `paraphrases` cannot be read ({reason.lower()}); name a file with lines "
            'such as {"text": "...", "alternatives": ["..."]}, or make one with `sft-engine back-translate`'
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _entry(line, path, number)


def _entry(line: str, path: str, number: int) -> tuple[str, list[str]]:
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError:
        found = None
    entry = found if isinstance(found, dict) else {}
    text, others = entry.get("text"), entry.get("alternatives")
    listed = isinstance(others, list) and all(isinstance(each, str) for each in others)
    if not isinstance(text, str) or not listed:
        raise DataError(
            f"'{path}', line {number}: found {line.strip()[:60]}, needed: an object with a string `text` "
            "and a list of strings `alternatives`"
        )
    return text.strip(), others  # type: ignore[return-value]  # `listed` says so


class Paraphrases(TextAugmentation):
    """Replace texts by other wordings of them, which a file gives.

    `sft-engine back-translate RECIPE` makes such a file, by translation into another language and back; any
    other tool may.

    Args:
        path: File with lines such as {"text": "...", "alternatives": ["...", "..."]}.
        share: Share of the rows that are changed, if the file has their text.
        columns: Which texts, of those that the data has.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        path: str,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        columns: tuple[str, ...] = COLUMNS,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until, columns)
        self.path = path
        self._wordings: dict[str, tuple[str, ...]] = {}

    def check(self) -> None:
        """Read the file; raise DataError if it cannot be used."""
        self._wordings = read_wordings(self.path)

    def prepare(self, data: Split) -> None:
        """Make sure that the file knows some of the training texts; raise RecipeError if not."""
        super().prepare(data)
        texts = (text for name in self.columns for text in data.rows[name] if text is not None)
        if not any(text.strip() in self._wordings for text in texts):
            raise RecipeError(
                f"'{self.path}' has other wordings of {len(self._wordings)} texts, and none of them is "
                "in the training split; make them from the same data (texts must be equal, apart from "
                "white space around them)"
            )

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return another wording."""
        return paraphrase(text, self._wordings, draws)
