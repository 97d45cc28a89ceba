"""Augmentations of texts: components around the functions of `characters` and `words`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, MinLen

from sft_augmentations.rows import RowAugmentation
from sft_engine import RecipeError
from sft_engine.texts import synonyms as tables
from sft_engine.texts.characters import (
    ALPHABET,
    KINDS,
    Kind,
    Layout,
    character_noise,
    keyboard_typos,
)
from sft_engine.texts.words import OPERATIONS, STYLES, Operation, Style, casing, eda, word_dropout

if TYPE_CHECKING:
    import numpy as np

    from sft_engine import Split

COLUMNS = ("text", "text_pair")


class TextAugmentation(RowAugmentation):
    """Changes the texts of a row; a subclass says how, in `reword`."""

    def __init__(self, share: float, until: float, columns: tuple[str, ...]) -> None:
        super().__init__(share, until)
        self.columns = tuple(columns)

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return the changed text."""
        raise NotImplementedError

    def prepare(self, data: Split) -> None:
        """Keep to the columns that there are.

        Raises:
            RecipeError: there is none of them.
        """
        there = tuple(name for name in self.columns if name in data.rows.column_names)
        if not there:
            raise RecipeError(
                f"an augmentation of texts changes {' and '.join(map(repr, self.columns))}, and the "
                f"training split has none of it (found: {', '.join(data.rows.column_names)}); name its "
                "columns in `columns`, or remove the augmentation"
            )
        self.columns = there

    def change(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Change every text of the row."""
        for name in self.columns:
            if row[name] is not None:
                row[name] = self.reword(row[name], draws)
        return row


class KeyboardTypos(TextAugmentation):
    """Make typing errors.

    Args:
        rate: Probability of each letter to be hit, in a text that is changed at all.
        share: Share of the rows that are changed.
        kinds: Which errors: the key beside (`substitute`), one more (`insert`), one less (`delete`), two
            letters the other way round (`swap`).
        keep_ends: Leave the first and the last letter of each word alone.
        layout: Keyboard: `qwerty`, `qwertz` or `azerty`.
        columns: Which texts, of those that the data has.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        rate: Annotated[float, Ge(0), Le(1)] = 0.05,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        kinds: Annotated[tuple[Kind, ...], MinLen(1)] = KINDS,
        keep_ends: bool = False,  # noqa: FBT001, FBT002 - an option of a recipe
        layout: Layout = "qwerty",
        columns: tuple[str, ...] = COLUMNS,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until, columns)
        self.rate, self.kinds, self.keep_ends, self.layout = rate, kinds, keep_ends, layout

    @property
    def effective(self) -> bool:
        """Whether any letter is hit."""
        return super().effective and self.rate > 0

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return the text with typing errors."""
        return keyboard_typos(
            text,
            self.rate,
            draws,
            layout=self.layout,
            kinds=self.kinds,
            keep_ends=self.keep_ends,
        )


class CharacterNoise(TextAugmentation):
    """Make random errors in any character but white space.

    Args:
        rate: Probability of each character to be hit, in a text that is changed at all.
        share: Share of the rows that are changed.
        kinds: Which errors: `substitute`, `insert`, `delete`, `swap`.
        keep_ends: Leave the first and the last character of each word alone.
        alphabet: Characters that are put in.
        columns: Which texts, of those that the data has.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        rate: Annotated[float, Ge(0), Le(1)] = 0.05,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        kinds: Annotated[tuple[Kind, ...], MinLen(1)] = KINDS,
        keep_ends: bool = False,  # noqa: FBT001, FBT002 - an option of a recipe
        alphabet: Annotated[str, MinLen(1)] = ALPHABET,
        columns: tuple[str, ...] = COLUMNS,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until, columns)
        self.rate, self.kinds, self.keep_ends, self.alphabet = rate, kinds, keep_ends, alphabet

    @property
    def effective(self) -> bool:
        """Whether any character is hit."""
        return super().effective and self.rate > 0

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return the text with errors."""
        return character_noise(
            text,
            self.rate,
            draws,
            alphabet=self.alphabet,
            kinds=self.kinds,
            keep_ends=self.keep_ends,
        )


class Eda(TextAugmentation):
    """Change words: one operation a text (Wei and Zou 2019, "EDA").

    Args:
        rate: Share of the words that change, in a text that is changed at all; at least one word.
        share: Share of the rows that are changed.
        operations: Any of `synonym`, `insert` (of a synonym), `swap` and `delete`.
        synonyms: Text file with one group of synonyms a line, between commas; empty for a small English
            table.
        columns: Which texts, of those that the data has.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        rate: Annotated[float, Ge(0), Le(1)] = 0.1,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        operations: Annotated[tuple[Operation, ...], MinLen(1)] = OPERATIONS,
        synonyms: str = "",
        columns: tuple[str, ...] = COLUMNS,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until, columns)
        self.rate, self.operations, self.synonyms = rate, operations, synonyms
        self._table: dict[str, tuple[str, ...]] = {}

    def check(self) -> None:
        """Read the synonyms; raise DataError if the file cannot be used."""
        self._table = tables.read(self.synonyms) if self.synonyms else tables.builtin()

    @property
    def effective(self) -> bool:
        """Whether any word changes."""
        return super().effective and self.rate > 0

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return the text after one operation."""
        return eda(text, self.rate, draws, self._table, self.operations)


class WordDropout(TextAugmentation):
    """Delete words, or put a token in their place; one word at least stays.

    Args:
        rate: Probability of each word to go, in a text that is changed at all.
        share: Share of the rows that are changed.
        token: What stands for a word that has gone, such as `[MASK]`; empty for nothing.
        columns: Which texts, of those that the data has.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        rate: Annotated[float, Ge(0), Le(1)] = 0.1,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        token: str = "",
        columns: tuple[str, ...] = COLUMNS,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until, columns)
        self.rate, self.token = rate, token

    @property
    def effective(self) -> bool:
        """Whether any word goes."""
        return super().effective and self.rate > 0

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return the text without some words."""
        return word_dropout(text, self.rate, draws, self.token)


class Casing(TextAugmentation):
    """Write a text in another case.

    Args:
        share: Share of the rows that are changed.
        styles: Drawn from: `lower`, `upper`, `title` (every word begins with a capital).
        columns: Which texts, of those that the data has.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        share: Annotated[float, Ge(0), Le(1)] = 0.3,
        styles: Annotated[tuple[Style, ...], MinLen(1)] = STYLES,
        columns: tuple[str, ...] = COLUMNS,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until, columns)
        self.styles = styles

    def reword(self, text: str, draws: np.random.Generator) -> str:
        """Return the text in a style that is drawn."""
        return casing(text, self.styles[int(draws.integers(len(self.styles)))])
