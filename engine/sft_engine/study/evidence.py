"""What the finished runs of a study gave, as arrays: scores, answers, probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.comparing.answers import Answers, measure_of, read_answers, value_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine.study.design import Cell
    from sft_engine.study.folder import Ending, StudyFolder

    Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CellResult:
    """What one cell gave.

    Args:
        cell: The cell.
        ending: How it stands.
        score: The metric on the judged split; NaN without a result.
        seconds: Training and evaluation.
        answers: To the examples of that split; None if they were not written.
    """

    cell: Cell
    ending: Ending
    score: float
    seconds: float
    answers: Answers | None

    @property
    def complete(self) -> bool:
        """Whether it trained to its end."""
        return self.ending.state == "complete"


@dataclass(frozen=True)
class Evidence:
    """What the cells of a study gave.

    Args:
        cells: All, in the order of the design.
        metric: What is judged.
        direction: `max` or `min`.
        split: Of the examples.
        examples: How many there are.
    """

    cells: tuple[CellResult, ...]
    metric: str
    direction: str
    split: str
    examples: int

    @property
    def larger_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return self.direction != "min"

    @cached_property
    def complete(self) -> tuple[CellResult, ...]:
        """The cells that trained to their end."""
        return tuple(each for each in self.cells if each.complete)

    @cached_property
    def scores(self) -> Floats:
        """Of the complete cells (runs,)."""
        return np.array([each.score for each in self.complete])

    @cached_property
    def table(self) -> Floats:
        """Scores (data, seeds); NaN where a run did not train to its end, or its score is NaN."""
        shape = [
            1 + max(getattr(each.cell, name) for each in self.cells) for name in ("data", "seed")
        ]
        made = np.full(shape, np.nan)
        for each in self.complete:
            made[each.cell.data, each.cell.seed] = each.score
        return made

    @cached_property
    def answered(self) -> tuple[Answers, ...]:
        """Answers of the complete cells that gave one to every example."""
        found = (each.answers for each in self.complete)
        return tuple(
            answers for answers in found if answers is not None and not answers.broken.any()
        )

    @property
    def kind(self) -> str:
        """Kind of task; empty where no answers were written."""
        return self.answered[0].kind if self.answered else ""

    def predictions(self) -> NDArray[Any] | None:
        """Return the answers (runs, examples), several labels as one text; None for numbers."""
        if not self.answered or self.kind == "regression":
            return None
        rows = [each.chosen for each in self.answered]
        if self.kind == "multi-label":
            rows = [
                np.array(["".join("01"[flag] for flag in row) for row in each]) for each in rows
            ]
        return np.stack(rows)

    def truth(self) -> NDArray[Any] | None:
        """Return the true answers as `predictions` writes them (examples,)."""
        if not self.answered or self.kind == "regression":
            return None
        truth = self.answered[0].truth
        if self.kind == "multi-label":
            return np.array(["".join("01"[flag] for flag in row) for row in truth])
        return truth

    def constant_score(self) -> float:
        """Return what the best constant answer scores; NaN where that is not known."""
        if not self.answered:
            return math.nan
        first = self.answered[0]
        measure = measure_of(self.metric, first.kind)
        if measure is None:
            return math.nan
        if first.kind == "classification":
            shares = np.bincount(first.truth, minlength=len(first.names)) / len(first.truth)
        else:
            shares = first.truth.mean(axis=0)
        constant = replace(
            first, given=np.broadcast_to(shares, first.given.shape).astype(np.float64)
        )
        return value_of(measure, constant)


def read_evidence(study: StudyFolder, cells: Sequence[Cell]) -> Evidence:
    """Read what the cells of a study gave."""
    endings = {cell: study.ending(cell) for cell in cells}
    reports = {cell: _report(study, cell) for cell in cells}
    first = next((r for c, r in reports.items() if endings[c].state == "complete"), {})
    task = first.get("task") or {}
    metric, split = str(task.get("metric", "")), str(first.get("split", ""))
    results = []
    for cell in cells:
        report, ended = reports[cell], endings[cell].state in ("complete", "stopped")
        path = study.run_of(cell) / "predictions" / f"{split}.jsonl"
        results.append(
            CellResult(
                cell,
                endings[cell],
                _number(report.get("metrics", {}).get(metric)) if ended else math.nan,
                _number(report.get("seconds")),
                read_answers(path) if ended and split else None,
            )
        )
    examples = int((first.get("examples") or {}).get(split, 0))
    return Evidence(tuple(results), metric, str(task.get("direction", "max")), split, examples)


def _report(study: StudyFolder, cell: Cell) -> dict[str, Any]:
    path = study.run_of(cell) / "report.json"
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
