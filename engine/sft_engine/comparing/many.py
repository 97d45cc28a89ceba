"""Three groups or more at once: do any of them differ?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_engine.comparing.design import is_crossed, pairs_of
from sft_engine.comparing.evidence import values_of
from sft_engine.comparing.runs import Group, same_rows
from sft_engine.comparing.verdicts import p_text
from sft_engine.significance.many import LEAST_METHODS, Friedman, Nemenyi, friedman, nemenyi

if TYPE_CHECKING:
    from sft_engine.comparing.over_runs import Question

LEAST_SEEDS = 5
"""Fewer blocks than this are too few for ranks: then examples are the blocks."""


@dataclass(frozen=True)
class ManyResult:
    """All groups at once, where there are three or more.

    Args:
        blocks: What was ranked within: `seeds` or `examples`.
        friedman: Whether any differ.
        nemenyi: Which do.
        sentence: In words.
    """

    blocks: str
    friedman: Friedman
    nemenyi: Nemenyi
    sentence: str


def compare_many(
    groups: Sequence[Group], view: str, question: Question, alpha: float
) -> ManyResult | None:
    """Rank three groups or more within seeds, or within examples; None where neither can be done."""
    if len(groups) < LEAST_METHODS:
        return None
    table, blocks = _by_seed(groups, view, question), "seeds"
    if table is None:
        table, blocks = _by_example(groups, view), "examples"
    if table is None:
        return None
    larger = question.larger_is_better or blocks == "examples"
    test = friedman(table, larger_is_better=larger)
    between = nemenyi(table, alpha=alpha, larger_is_better=larger)
    names = [group.name for group in groups]
    sentence = _sentence_of_many(names, test, between, blocks, alpha)
    if blocks == "examples" and max(len(group.members) for group in groups) > 1:
        sentence += " Ranked within examples, this speaks of these runs, not of other seeds."
    return ManyResult(blocks, test, between, sentence)


def _by_seed(groups: Sequence[Group], view: str, question: Question) -> np.ndarray | None:
    """Return the scores of runs of the same seeds (runs, groups), if runs are many and independent."""
    first = groups[0]
    if len(first.members) < LEAST_SEEDS or is_crossed(first):
        return None
    columns = [values_of(first, view, question.metric)]
    for other in groups[1:]:
        partner = {one.folder: two for one, two in pairs_of(first, other)}
        if len(partner) < len(first.members):
            return None
        scores = values_of(other, view, question.metric)
        by_folder = {m.folder: score for m, score in zip(other.members, scores, strict=True)}
        columns.append([by_folder[partner[member.folder].folder] for member in first.members])
    return np.array(columns).T


def _by_example(groups: Sequence[Group], view: str) -> np.ndarray | None:
    """Return how well each group does on each example, more being better (examples, groups)."""
    answers = [[member.answers(view) for member in group.members] for group in groups]
    if not same_rows([each for group in answers for each in group]):
        return None
    columns = []
    for group in answers:
        found = [each for each in group if each is not None]
        if found[0].kind == "regression":
            parts = [-((each.given - each.truth) ** 2).mean(axis=1) for each in found]
        else:
            parts = [each.right.astype(float) for each in found if each.right is not None]
        columns.append(np.mean(parts, axis=0))
    table = np.array(columns).T
    return table if len(table) > 1 else None


def _sentence_of_many(
    names: Sequence[str], test: Friedman, between: Nemenyi, blocks: str, alpha: float
) -> str:
    head = f"Friedman over {test.blocks} {blocks}: {p_text(test.p)}"
    if math.isnan(test.p) or test.p > alpha:
        return f"{head}; that any of them differ is not shown."
    apart = [
        f"{names[i]} and {names[j]}"
        for i, j in itertools.combinations(range(len(names)), 2)
        if between.p[i][j] <= alpha
    ]
    return f"{head}; Nemenyi tells apart {', '.join(apart) or 'no pair'}."
