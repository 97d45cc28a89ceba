"""One trial: an ordinary run that is watched, and ended early if it falls behind the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import DataError, RecipeError
from sft_engine.sentences import choices, suggest
from sft_engine.training import train

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.flow import Run
    from sft_engine.interruption import Signals

_PREFIX = "validation/"
PRUNED = "pruned"
"""How the reason begins for which a pruned run ended."""

Judge = Callable[[int, float], bool]
"""Takes the number of an evaluation and its value; says whether the trial is to be pruned."""


@dataclass
class Watcher:
    """Watches a run as a `Progress` of `training` would show it.

    Args:
        metric: Of the validation split.
        judge: Asked after every evaluation that is one of training.
        allowed: Whether to prune at all.
    """

    metric: str
    judge: Judge
    allowed: bool = True
    _run: Run | None = field(default=None, init=False)

    def say(self, line: str) -> None:
        """Show nothing: what ends a run is said by its trial."""

    def start(self, run: Run, precision: str) -> None:  # noqa: ARG002 (the protocol)
        """Refuse a run whose value nobody would know.

        Raises:
            DataError: there is no validation split.
        """
        self._run = run
        if "validation" not in run.splits:
            raise DataError(
                "trials are compared on the validation split, and the data has none: set `data.validation` "
                "to the share of training examples to hold out"
            )

    def show(self, record: dict[str, Any]) -> None:
        """Pass the metric on, and ask the run to end if it is pruned.

        Raises:
            RecipeError: there is no such metric; said now, and not after hours of training.
        """
        run = self._run
        if run is None or not _is_plain_validation(record):
            return
        values = {k.partition("/")[2]: v for k, v in run.metrics.items() if k.startswith(_PREFIX)}
        if self.metric not in values:
            raise _no_metric(self.metric, values)
        value = values[self.metric]
        steps = evaluated_steps(run.folder)
        if not math.isfinite(value) or not self.judge(steps.index(record["step"]) + 1, value):
            return
        if self.allowed and run.clock.step < run.clock.total_steps:
            run.control.stop = (
                run.control.stop
                or f"{PRUNED}: {self.metric} {value:.4g} is worse than the median of the trials so far"
            )

    def close(self) -> None:
        """Close nothing."""


def _is_plain_validation(record: dict[str, Any]) -> bool:
    return (
        record.get("kind") == "evaluation"
        and record.get("split") == "validation"
        and not record.get("view")
    )


def evaluated_steps(folder: Path) -> list[int]:
    """Return the steps of a run after which the validation split was evaluated, each once, in order.

    Their numbers are what trials are compared by: steps differ with the batch size. The final evaluation
    is of a step that was evaluated before.
    """
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = (json.loads(line) for line in lines if '"evaluation"' in line)
    return list(dict.fromkeys(r["step"] for r in records if _is_plain_validation(r)))


@dataclass(frozen=True)
class Result:
    """How a trial's run ended.

    Args:
        value: Its metric on the validation split, of the weights that the run selected.
        pruned: Whether it was ended early.
    """

    value: float
    pruned: bool


def carry_out(
    plan: Callable[[Path | None], Plan], folder: Path, watcher: Watcher, signals: Signals
) -> Result:
    """Run a trial, or go on with it where it was interrupted.

    Args:
        plan: Checks the trial's recipe; given the file of a run folder, that one.
        folder: The run folder.
        watcher: Watches it.
        signals: Open already.

    Raises:
        SftError: whatever stopped the run.
    """
    report = folder / "report.json"
    if not (report.exists() and (folder / "model").exists()):
        began = folder / "recipe.toml"
        again = began if began.exists() else None
        train(plan(again), folder, resume=again is not None, progress=watcher, signals=signals)
    return read_result(report, watcher.metric)


def _no_metric(name: str, values: Mapping[str, Any]) -> RecipeError:
    known = [key for key, value in values.items() if isinstance(value, float)]
    return RecipeError(
        f"the validation split has no metric {name!r}; {suggest(name, known) or choices(known)}"
    )


def read_result(report: Path, metric: str) -> Result:
    """Read how a finished run ended.

    Raises:
        RecipeError: it has no such metric.
    """
    content = json.loads(report.read_text(encoding="utf-8"))
    value = content["metrics"].get(metric)
    if not isinstance(value, (int, float)):
        raise _no_metric(metric, content["metrics"])
    return Result(float(value), pruned=content["reason"].startswith(PRUNED))
