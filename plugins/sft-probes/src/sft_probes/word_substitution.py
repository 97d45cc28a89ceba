"""A greedy attack on texts that sees nothing but probabilities: which few words flip a prediction?

The plan is that of TextFooler (Jin et al. 2020, "Is BERT Really Robust?") and DeepWordBug (Gao et al. 2018):
rank words by how much the probability of the true class falls when each is left out, then replace them in that
order. The replacements are our own: synonyms of a table, and typing errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, MinLen

from sft_engine import order, ranks
from sft_engine.texts import synonyms as tables
from sft_engine.texts.characters import KINDS, Kind, keyboard_typos
from sft_engine.texts.words import in_place_of
from sft_probes.asking import probabilities, require_classes, require_whole_model
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Batch, Run, Split, View

    Ask = Callable[[Sequence[str]], NDArray[np.float64]]
    Candidates = Callable[[str, int], Sequence[str]]

Way = Literal["synonyms", "typos"]
WAYS: tuple[Way, ...] = ("synonyms", "typos")
TEXT = "text"


@dataclass(frozen=True)
class Attacked:
    """The path of an attack on one text.

    Args:
        texts: The text itself, then the text after each word that was replaced.
        queries: How many texts the model had been asked about when each of these was found.
        words: Words of the text.
        right: Whether the model was right before the attack; where it was not, nothing is tried.
        flipped: Whether it is wrong about the last text.
    """

    texts: tuple[str, ...]
    queries: tuple[int, ...]
    words: int
    right: bool
    flipped: bool

    def within(self, share: float) -> int:
        """Return how many words are replaced if no more than this share of them, but one, may be."""
        return min(max(1, int(share * self.words + 1e-9)), len(self.texts) - 1)

    def succeeds(self, share: float) -> bool:
        """Say whether the prediction flips within this share."""
        return self.right and self.flipped and self.within(share) == len(self.texts) - 1


def attack(
    text: str, label: int, ask: Ask, candidates: Candidates, *, share: float, budget: int
) -> Attacked:
    """Replace words, the most important first, until the prediction is not `label` any more.

    Args:
        text: Any text.
        label: The true class.
        ask: Returns class probabilities (n, classes) of texts.
        candidates: Returns what may stand for a word, given the word and its number in the text.
        share: Largest share of the words that may be replaced; one always may.
        budget: Most texts that the model is asked about.
    """
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if part and not part.isspace()]
    truth = ask([text])[0]
    texts, queries = [text], [1]
    right = int(truth.argmax()) == label
    flipped = False
    if right and len(places) > 0:
        allowed = max(1, int(share * len(places) + 1e-9))
        spent, ranked = _ranked(parts, places, label, ask, budget - 1)
        spent += 1
        best = float(truth[label])
        for number, place in ranked:
            tried = _tried(parts, place, candidates(parts[place], number), budget - spent)
            if not tried:
                continue
            answers = ask(["".join(each) for each in tried])
            spent += len(tried)
            wrong = answers.argmax(axis=1) != label
            # One that flips is better than any that does not.
            chosen = int(np.lexsort((answers[:, label], ~wrong))[0])
            if not wrong[chosen] and answers[chosen, label] >= best:
                continue
            parts, best = tried[chosen], float(answers[chosen, label])
            texts.append("".join(parts))
            queries.append(spent)
            flipped = bool(wrong[chosen])
            if flipped or len(texts) > allowed:
                break
        if not flipped:
            queries[-1] = spent
    return Attacked(tuple(texts), tuple(queries), len(places), right, flipped)


def _ranked(
    parts: Sequence[str], places: Sequence[int], label: int, ask: Ask, budget: int
) -> tuple[int, list[tuple[int, int]]]:
    """Return the queries spent, and number and place of each word, the most important first."""
    asked = list(enumerate(places))[: max(budget, 0)]
    without = ["".join([*parts[:place], *parts[place + 1 :]]) for _, place in asked]
    if not without:
        return 0, []
    kept = ask(without)[:, label]
    return len(asked), [asked[i] for i in np.argsort(kept, kind="stable")]


def _tried(
    parts: Sequence[str], place: int, candidates: Sequence[str], budget: int
) -> list[list[str]]:
    others = [each for each in dict.fromkeys(candidates) if each != parts[place]]
    return [[*parts[:place], each, *parts[place + 1 :]] for each in others[: max(budget, 0)]]


class WordSubstitution(Probe):
    """Attack texts: replace the words that matter most until the prediction flips.

    A greedy black-box attack of our own: words are ranked by leaving each out, then replaced by synonyms and
    typing errors, always by what lowers the probability of the true class most. Only examples that the model
    gets right are attacked. The number of queries grows with the length of the text, so few examples are
    attacked by default.

    Args:
        severities: Largest share of the words that may be replaced; one word always may.
        ways: What stands for a word: `synonyms` of a table, `typos` of each kind.
        queries: Most texts that the model is asked about for one example.
        synonyms: Text file with one group of synonyms a line, between commas; empty for a small English
            table.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the typing errors.
    """

    title = "Word substitution attack"
    axis = "share of words replaced"
    inputs: ClassVar[frozenset[str]] = frozenset({TEXT})

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (
            0.1,
            0.2,
            0.4,
        ),
        ways: Annotated[tuple[Way, ...], MinLen(1)] = WAYS,
        queries: Annotated[int, Ge(2)] = 200,
        synonyms: str = "",
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 100,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.shares = severities
        self.ways, self.queries, self.synonyms = ways, queries, synonyms
        self._table: dict[str, tuple[str, ...]] = {}
        self.attacked: dict[int, Attacked] = {}

    def check(self) -> None:
        """Read the synonyms; raise DataError if the file cannot be used."""
        self._table = tables.read(self.synonyms) if self.synonyms else tables.builtin()

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse what cannot be attacked."""
        super().prepare(run, data)
        require_classes(run, self.name)
        require_whole_model(run, self.name)

    def views(self, run: Run) -> list[View]:  # noqa: ARG002 - contract
        """Return a view for each severity; the attack is made once, in the first of them."""
        self.attacked = {}  # the weights may have changed
        return [self.view(each, perturb=self._perturb(each)) for each in self.shares]

    def _perturb(self, share: float) -> Callable[[Run, Batch], None]:
        def perturb(run: Run, batch: Batch) -> None:
            if not batch.real:
                return
            rows = run.splits[self.split].rows.__getitems__(batch.ids)
            labels = batch.targets["label"].tolist()
            texts = [
                self._text(run, example, row, label, share)
                for example, row, label in zip(batch.ids, rows, labels, strict=True)
            ]
            changed = [{**row, TEXT: text} for row, text in zip(rows, texts, strict=True)]
            batch.inputs = run.backbone.collate(run.backbone.encode_rows(changed, run.task))
            batch.to(run.device)

        return perturb

    def _text(self, run: Run, example: int, row: dict[str, Any], label: int, share: float) -> str:
        if example not in self.attacked:
            self.attacked[example] = attack(
                row[TEXT],
                label,
                lambda texts: probabilities(run, [{**row, TEXT: t} for t in texts]).numpy(),
                lambda word, number: self._candidates(word, example, number),
                share=max(self.shares),
                budget=self.queries,
            )
        found = self.attacked[example]
        return found.texts[found.within(share)]

    def _candidates(self, word: str, example: int, number: int) -> list[str]:
        """Return what may stand for a word: alike for every model."""
        found = in_place_of(word, self._table) if "synonyms" in self.ways else []
        if "typos" in self.ways:
            found += [
                _one_typo(word, order.generator(self.seed, example, number, place), kind)
                for place, kind in enumerate(KINDS)
            ]
        return found

    def measured(self, run: Run, view: View) -> dict[str, float]:
        """Return how often the attack succeeds, and at what price."""
        for theirs in ranks.everyones(run.accelerator, self.attacked):
            self.attacked |= theirs
        ids = view.examples(run.splits[self.split]).tolist()
        return costs([self.attacked[example] for example in ids], view.tags["severity"])

    def changed_row(self, data: Split, view: View, example: int) -> dict[str, Any]:
        """Return an example after the attack."""
        found = self.attacked[example]
        text = found.texts[found.within(view.tags["severity"])]
        return {**data.rows[example], TEXT: text}

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the text."""
        return {TEXT: row[TEXT]}


def costs(found: Sequence[Attacked], share: float) -> dict[str, float]:
    """Return success rate among what was right, mean share of words replaced where it succeeds, queries.

    Args:
        found: Of each example.
        share: Of the words that may be replaced.
    """
    right = [each for each in found if each.right]
    won = [each for each in right if each.succeeds(share)]
    nothing = float("nan")
    return {
        "success-rate": len(won) / len(right) if right else nothing,
        "perturbed": (
            sum(each.within(share) / each.words for each in won) / len(won) if won else nothing
        ),
        "queries": (
            sum(each.queries[each.within(share)] for each in right) / len(right)
            if right
            else nothing
        ),
    }


def _one_typo(word: str, draws: np.random.Generator, kind: Kind) -> str:
    """Return the word with one typing error in one of its letters."""
    letters = [place for place, letter in enumerate(word) if letter.isalpha()]
    if not letters:
        return word
    at = letters[int(draws.integers(len(letters)))]
    if kind == "swap" and at + 1 < len(word):
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + keyboard_typos(word[at], 1.0, draws, kinds=(kind,)) + word[at + 1 :]
