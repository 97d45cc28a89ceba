"""Probes of texts: components around the functions of `sft_engine.texts` and `changes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, MinLen

from sft_engine.texts import synonyms as tables
from sft_engine.texts.characters import (
    ALPHABET,
    KINDS,
    Kind,
    Layout,
    character_noise,
    keyboard_typos,
)
from sft_engine.texts.words import STYLES, Style, casing, synonym_swap, word_dropout
from sft_probes.changes import (
    WORD_CHANGES,
    Side,
    WordChange,
    homoglyphs,
    punctuation,
    truncated,
    whitespace,
    word_noise,
)
from sft_probes.severity import RowProbe

if TYPE_CHECKING:
    import numpy as np

    from sft_engine import Run, Split

COLUMNS = ("text", "text_pair")
Rates = Annotated[tuple[Annotated[float, Ge(0), Le(1)], ...], MinLen(1)]


class TextProbe(RowProbe):
    """Changes the texts of a row; a subclass says how, in `reword`."""

    inputs: ClassVar[frozenset[str]] = frozenset(COLUMNS)
    columns: tuple[str, ...] = COLUMNS

    def reword(self, text: str, severity: Any, draws: np.random.Generator) -> str:
        """Return the changed text; severity 0 returns it as it is."""
        raise NotImplementedError

    def prepare(self, run: Run, data: Split) -> None:
        """Keep to the texts that there are."""
        super().prepare(run, data)
        self.columns = tuple(name for name in COLUMNS if name in data.rows.column_names)

    def disturb(
        self, row: dict[str, Any], severity: Any, draws: np.random.Generator
    ) -> dict[str, Any]:
        """Change every text of the row."""
        for name in self.columns:
            if row.get(name) is not None:
                row[name] = self.reword(row[name], severity, draws)
        return row

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the texts."""
        return {name.replace("_", " "): row[name] or "" for name in self.columns}


class Typos(TextProbe):
    """Make typing errors: in each letter with the rate that is the severity, one of four.

    As training with `keyboard-typos` does. The curve over 0, 0.02, 0.05, 0.1 and 0.2 is the usual one.

    Args:
        severities: Rates: probability of each letter to be hit.
        kinds: Which errors: the key beside (`substitute`), one more (`insert`), one less (`delete`), two
            letters the other way round (`swap`).
        keep_ends: Leave the first and the last letter of each word alone.
        layout: Keyboard: `qwerty`, `qwertz` or `azerty`.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the errors.
    """

    title = "Keyboard typos"
    axis = "typo rate"

    def __init__(
        self,
        severities: Rates = (0.02, 0.05, 0.1, 0.2),
        kinds: Annotated[tuple[Kind, ...], MinLen(1)] = KINDS,
        keep_ends: bool = False,  # noqa: FBT001, FBT002 - an option of a recipe
        layout: Layout = "qwerty",
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.kinds, self.keep_ends, self.layout = kinds, keep_ends, layout

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with typing errors."""
        return keyboard_typos(
            text, severity, draws, layout=self.layout, kinds=self.kinds, keep_ends=self.keep_ends
        )


class CharacterNoise(TextProbe):
    """Make random errors in any character but white space.

    Args:
        severities: Rates: probability of each character to be hit.
        kinds: Which errors: `substitute`, `insert`, `delete`, `swap`.
        keep_ends: Leave the first and the last character of each word alone.
        alphabet: Characters that are put in.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the errors.
    """

    title = "Random characters"
    axis = "error rate"

    def __init__(
        self,
        severities: Rates = (0.02, 0.05, 0.1, 0.2),
        kinds: Annotated[tuple[Kind, ...], MinLen(1)] = KINDS,
        keep_ends: bool = False,  # noqa: FBT001, FBT002 - an option of a recipe
        alphabet: Annotated[str, MinLen(1)] = ALPHABET,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.kinds, self.keep_ends, self.alphabet = kinds, keep_ends, alphabet

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with errors."""
        return character_noise(
            text,
            severity,
            draws,
            alphabet=self.alphabet,
            kinds=self.kinds,
            keep_ends=self.keep_ends,
        )


class WordNoise(TextProbe):
    """Lose, double, swap and replace words.

    Args:
        severities: Rates: probability of each word to be hit.
        kinds: Which changes: `delete`, `double`, `swap` with the next, `replace` by another of the text.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the changes.
    """

    title = "Word noise"
    axis = "word rate"

    def __init__(
        self,
        severities: Rates = (0.05, 0.1, 0.2, 0.4),
        kinds: Annotated[tuple[WordChange, ...], MinLen(1)] = WORD_CHANGES,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.kinds = kinds

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with some words changed."""
        return word_noise(text, severity, draws, self.kinds)


class WordDropout(TextProbe):
    """Delete words, or put a token in their place; one word at least stays.

    Args:
        severities: Rates: probability of each word to go.
        token: What stands for a word that has gone, such as `[MASK]`; empty for nothing.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the changes.
    """

    title = "Missing words"
    axis = "share of words missing"

    def __init__(
        self,
        severities: Rates = (0.1, 0.2, 0.4),
        token: str = "",
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.token = token

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text without some words."""
        return word_dropout(text, severity, draws, self.token)


class Casing(TextProbe):
    """Write texts in another case.

    Args:
        severities: Styles: `lower`, `upper`, `title` (every word begins with a capital).
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Upper and lower case"
    axis = "style"

    def __init__(
        self,
        severities: Annotated[tuple[Style, ...], MinLen(1)] = STYLES,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def reword(self, text: str, severity: Style, draws: np.random.Generator) -> str:  # noqa: ARG002 - contract
        """Return the text in a style."""
        return casing(text, severity)


class Punctuation(TextProbe):
    """Lose punctuation marks, and put marks behind words that have none.

    Args:
        severities: Rates: probability of each mark to go, and of each bare word to get one.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the changes.
    """

    title = "Punctuation"
    axis = "punctuation rate"

    def __init__(
        self,
        severities: Rates = (0.1, 0.3, 0.5),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with other punctuation."""
        return punctuation(text, severity, draws)


class Whitespace(TextProbe):
    """Join words, split words, and double spaces.

    Args:
        severities: Rates: probability of each gap to be closed or widened, and of each word to be split.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the changes.
    """

    title = "White space"
    axis = "white-space rate"

    def __init__(
        self,
        severities: Rates = (0.05, 0.1, 0.2),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with other white space."""
        return whitespace(text, severity, draws)


class Homoglyphs(TextProbe):
    """Replace Latin letters by some of other alphabets that look alike.

    Args:
        severities: Rates: probability of each letter that has a look-alike.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the changes.
    """

    title = "Letters that look alike"
    axis = "homoglyph rate"

    def __init__(
        self,
        severities: Rates = (0.02, 0.05, 0.1, 0.2),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with look-alikes."""
        return homoglyphs(text, severity, draws)


class SynonymSwap(TextProbe):
    """Replace words by synonyms.

    Args:
        severities: Rates: probability of each word that has synonyms.
        synonyms: Text file with one group of synonyms a line, between commas; empty for a small English
            table.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the changes.
    """

    title = "Synonyms"
    axis = "synonym rate"

    def __init__(
        self,
        severities: Rates = (0.25, 0.5, 1.0),
        synonyms: str = "",
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.synonyms = synonyms
        self._table: dict[str, tuple[str, ...]] = {}

    def check(self) -> None:
        """Read the synonyms; raise DataError if the file cannot be used."""
        self._table = tables.read(self.synonyms) if self.synonyms else tables.builtin()

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:
        """Return the text with synonyms."""
        return synonym_swap(text, severity, draws, self._table)


class Truncation(TextProbe):
    """Cut off a share of the words; one word at least stays.

    Args:
        severities: Share of the words that goes.
        side: Where: at the `end`, at the `start`, or half at each (`both`).
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Truncation"
    axis = "share cut off"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (
            0.25,
            0.5,
            0.75,
        ),
        side: Side = "end",
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.side = side

    def reword(self, text: str, severity: float, draws: np.random.Generator) -> str:  # noqa: ARG002 - contract
        """Return what is left of the text."""
        return truncated(text, severity, self.side)
