"""Attributions in the report of a run: which parts of its inputs its answers are owed to.

The method is that of the recipe's `[explanation]`, integrated gradients without one. The attributions of a few
examples, the same for every model, stand in report.json, so that a study can say whether its runs agree on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt

from sft_engine import sections
from sft_engine.columns import row_numbers
from sft_engine.explaining import explanation_of, outputs_of
from sft_engine.feed import transformed
from sft_probes.answers import label_of, named
from sft_probes.asking import require_whole_model
from sft_probes.explained_inputs import IMAGE, ROLES, TABLE, TEXT, role_of
from sft_probes.measures import known
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Explained, Run, Split, View
    from sft_engine.sections import Block

RIGHT, WRONG = "Most certain and right", "Most certain and wrong"
NEAR, FAR = "Nearest to the truth", "Furthest off"
FIXED = "Examples"
LEGEND = "Orange cells speak for the answer, blue striped ones against it; grey ones do neither."
BARS = 12
"""Columns of a table that are shown of one example."""
LONGEST_REST = 80
HALF = 0.5


class Attributions(Probe):
    """Show which words, cells of an image or columns of a table answers are owed to.

    The report shows the most certain right and wrong answers with the reasons for what was answered. Besides, the
    reasons for the true answer to `examples` of the split, the same for every model, are kept in report.json: the
    report of a study says how far its runs agree on them. The method is that of `[explanation]`, by default
    integrated gradients.

    Args:
        shown: Examples of each list.
        top: How many parts, the strongest ones, a study compares.
        split: Which split is looked at.
        examples: How many of its examples are kept, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "What answers are owed to"
    inputs: ClassVar[frozenset[str]] = frozenset(ROLES)

    def __init__(
        self,
        shown: Annotated[int, Ge(0)] = 4,
        top: Annotated[int, Gt(0)] = 5,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 16,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__((), split, examples, seed)
        self.most, self.top = shown, top
        self.kept: list[tuple[int, Explained]] = []
        self.lists: dict[str, list[tuple[dict[str, Any], dict[str, Any], Explained]]] = {}

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse a model that cannot be explained, and a method that is not there."""
        super().prepare(run, data)
        require_whole_model(run, self.name)
        explanation_of(run)[1].prepare(run)

    def views(self, run: Run) -> list[View]:  # noqa: ARG002 - contract
        """Return none."""
        return []

    def _of_chosen(self, predictions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return those of all examples: the most certain ones may be any."""
        return predictions

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Explain, alike on all ranks, while the weights are those that are judged."""
        super().collect(run, view, values, predictions)
        component = explanation_of(run)[1]
        data, head = run.splits[self.split], run.task.head
        answered = outputs_of(head, predictions)
        numbers = row_numbers(data.rows)
        fixed = list(range(len(data))) if self.ids is None else self.ids
        wanted = _true_outputs(predictions, answered, head.kind)
        found = component.explain(run, _rows(data, fixed), [wanted[i] for i in fixed])
        self.kept = [(int(numbers[i]), each) for i, each in zip(fixed, found, strict=True)]
        self.lists = {}
        for title, ids in self._chosen(run, predictions).items():
            rows = _rows(data, ids)
            found = component.explain(run, rows, [answered[i] for i in ids])
            facts = [{"row": int(numbers[i]), **self._facts(run, predictions, i)} for i in ids]
            self.lists[title] = list(zip(rows, facts, found, strict=True))

    def _chosen(self, run: Run, predictions: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """Return which examples are shown, by the title of their list."""
        label = predictions.get("label")
        if label is None:
            return {FIXED: (self.ids or list(range(len(predictions["logits"]))))[: self.most]}
        if run.task.head.kind == "regression":
            errors = (predictions["logits"].double() - label.double()).abs()
            errors = errors.reshape(len(errors), -1).amax(dim=1)
            order = [i for i in errors.argsort(stable=True).tolist() if torch.isfinite(errors[i])]
            return {NEAR: order[: self.most], FAR: order[::-1][: self.most]}
        judged = known(predictions, run.task.head)
        surest = np.argsort(-judged.confidence, kind="stable")
        ids, right = judged.ids[surest], judged.right[surest]
        return {
            title: ids[which][: self.most].tolist()
            for title, which in ((RIGHT, right), (WRONG, ~right))
        }

    def _facts(self, run: Run, predictions: Mapping[str, Tensor], index: int) -> dict[str, Any]:
        """Return what was answered to an example, how sure, and what is true."""
        head, logits = run.task.head, predictions["logits"][index].double()
        assert self.clean is not None
        facts: dict[str, Any] = {"answer": named(self.clean.answers[index], head)}
        if head.kind == "classification" and bool(logits.isfinite().all()):
            facts["probability"] = float(logits.softmax(dim=0).max())
        if "label" in predictions:
            label = predictions["label"][index]
            masked = head.kind == "classification" and int(label) < 0
            facts["true"] = "unknown" if masked else label_of(label, head)
        return facts

    # --- the section -----------------------------------------------------------------------------

    def facts(self, run: Run) -> dict[str, Any]:
        """Return the attributions of the kept examples, without pictures."""
        return {
            "method": explanation_of(run)[0],
            "split": self.split,
            "examples": len(self.kept),
            "seed": self.seed,
            "top": self.top,
            "attributions": [{"row": row, **_plain(each)} for row, each in self.kept],
        }

    def blocks(self, run: Run) -> list[Block]:
        """Return the lists, and for tables how much each column counts."""
        role = role_of(run, self.name)
        found: list[Block] = []
        if role == TABLE and self.kept:
            found.append(_of_columns([each for _, each in self.kept]))
        if role == IMAGE and any(self.lists.values()):
            found.append(sections.text(LEGEND))
        for title, rows in self.lists.items():
            found += _shown(role, title, rows)
        if not any(self.lists.values()):
            found.append(sections.text("No example was answered with certainty."))
        return [*found, *_sum_note([each for rows in self.lists.values() for *_, each in rows])]

    def summary(self, run: Run) -> str:
        """Say by which method, and how few parts carry half of an answer."""
        method = explanation_of(run)[0]
        shares = [_carriers(each.scores) for _, each in self.kept if any(each.scores)]
        if not shares:
            return f"By {method}."
        counts = [len(each.parts) for _, each in self.kept if any(each.scores)]
        parts = {TEXT: "words", IMAGE: "cells", TABLE: "columns"}[role_of(run, self.name)]
        return (
            f"By {method}: half of what speaks for or against an answer lies in {np.median(shares):g} of "
            f"{np.median(counts):g} {parts} (medians of {len(shares)} examples)."
        )


def _rows(data: Split, ids: Sequence[int]) -> list[dict[str, Any]]:
    return [dict(row) for row in transformed(data, list(ids), (0,), [])] if ids else []


def _true_outputs(
    predictions: Mapping[str, Tensor], answered: Sequence[int], kind: str
) -> list[int]:
    """Return the output of the true answer of each example, the first of several; else that of what was answered."""
    label = predictions.get("label")
    if label is None or kind == "regression":
        return list(answered)
    if kind == "classification":
        pairs = zip(label.tolist(), answered, strict=True)
        return [true if true >= 0 else said for true, said in pairs]
    flags = label > 0
    first = flags.int().argmax(dim=1).tolist()
    triples = zip(flags.any(dim=1).tolist(), first, answered, strict=True)
    return [true if any_ else said for any_, true, said in triples]


def _plain(each: Explained) -> dict[str, Any]:
    record = each.record()
    return {name: record[name] for name in ("output", "parts", "scores", "value")}


def _carriers(scores: Sequence[float]) -> int:
    """Return how many parts, the strongest first, hold half of the sum of absolute scores."""
    sizes = np.sort(np.abs(scores))[::-1]
    return int(np.searchsorted(np.cumsum(sizes), HALF * sizes.sum()) + 1)


def _finite(scores: Sequence[float]) -> list[float | None]:
    return [score if np.isfinite(score) else None for score in scores]


def _shown(
    role: str, title: str, rows: Sequence[tuple[dict[str, Any], dict[str, Any], Explained]]
) -> list[Block]:
    if not rows:
        return []
    if role == TEXT:
        texts = [{**marked_text(row, each), "facts": facts} for row, facts, each in rows]
        return [sections.marked(title, texts)]
    if role == IMAGE:
        pictures = [{**facts, "image": each.heat_map} for _, facts, each in rows]
        return [sections.examples(title, list(rows[0][1]), pictures)]
    return [_bars(title, facts, each) for _, facts, each in rows]


def marked_text(row: Mapping[str, Any], each: Explained) -> dict[str, Any]:
    """Return `parts` and `scores` of a text: its words, and without a score what lies between and behind them."""
    if not each.spans:
        spaced = [piece for part in each.parts for piece in (part, " ")]
        scores = [piece for score in _finite(each.scores) for piece in (score, None)]
        return {"parts": spaced, "scores": scores}
    by_place = sorted(zip(each.spans, _finite(each.scores), strict=True))
    parts: list[str] = []
    scores = []
    for role in (name for name in row if any(span[0] == name for span in each.spans)):
        text, at = row[role], 0
        parts, scores = [*parts, *(["\n"] if parts else [])], [*scores, *([None] if parts else [])]
        for (_, begin, end), score in (item for item in by_place if item[0][0] == role):
            parts += [text[at:begin], text[begin:end]]
            scores += [None, score]
            at = end
        parts.append(_cut(text[at:]))
        scores.append(None)
    return {"parts": parts, "scores": scores}


def _cut(rest: str) -> str:
    """Shorten what the model did not read."""
    return rest if len(rest) <= LONGEST_REST else rest[: LONGEST_REST - 1] + "…"


def _bars(title: str, facts: Mapping[str, Any], each: Explained) -> Block:
    order = sorted(range(len(each.parts)), key=lambda i: -abs(each.scores[i]))[:BARS]
    said = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    )
    return sections.bars(
        f"{title}: {said}",
        [each.parts[i] for i in order],
        [_finite(each.scores)[i] for i in order],
        label=f"attribution to {each.output}",
    )


def _of_columns(found: Sequence[Explained]) -> Block:
    means = np.abs(np.array([each.scores for each in found])).mean(axis=0)
    order = np.argsort(-means, kind="stable")[:BARS]
    return sections.bars(
        "How much columns count",
        [found[0].parts[i] for i in order],
        _finite(means[order].tolist()),
        label=f"mean absolute attribution, {len(found)} examples",
    )


def _sum_note(found: Sequence[Explained]) -> list[Block]:
    """Say how near scores come to the sum that they promise."""
    gaps = [
        (abs(each.gap), abs(each.value - each.baseline))
        for each in found
        if each.gap is not None and each.baseline is not None and np.isfinite(each.gap)
    ]
    if not gaps:
        return []
    gap, difference = max(gaps)
    return [
        sections.text(
            "The scores of an example add up to the difference between its output before softmax and that of "
            f"an input that says nothing; the largest gap is {gap:.3g}, where that difference is "
            f"{difference:.3g}. More steps make it smaller."
        )
    ]
