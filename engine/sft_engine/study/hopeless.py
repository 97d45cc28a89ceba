"""Stop runs that are clearly behind the others: most of what a bad seed will show, it shows early.

Source: J. Dodge et al., "Fine-Tuning Pretrained Language Models: Weight Initializations, Data Orders, and Early
Stopping", arXiv 2002.06305, section 5: start many, stop those that look bad early, go on with the rest.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import DataError
from sft_engine.records import HOPELESS
from sft_engine.training import best_metric

if TYPE_CHECKING:
    from sft_engine.flow import Run

FEWEST = 3
"""Other runs that must have come as far: of fewer, nobody knows what is usual."""

DEVIATIONS = 3.0
"""How many robust standard deviations below the median are clearly below it."""

LEAST_GAP = 0.05
"""Share of the median that a run must at least be behind: where all others agree, any gap is many deviations."""

_NORMAL = 1.4826
"""Median absolute deviations in a standard deviation of normal values."""


def is_hopeless(value: float, others: Sequence[float], *, larger_is_better: bool) -> bool:
    """Say whether a value is clearly worse than the median of others.

    Clearly: by three times their scaled median absolute deviation, and by a twentieth of the median.

    Args:
        value: Of this run.
        others: Of runs at the same share of their way; with fewer than three nothing is hopeless.
        larger_is_better: Of the metric.
    """
    known = [each for each in others if math.isfinite(each)]
    if len(known) < FEWEST:
        return False
    if not math.isfinite(value):
        return True
    middle = statistics.median(known)
    spread = _NORMAL * statistics.median(abs(each - middle) for each in known)
    behind = middle - value if larger_is_better else value - middle
    return behind > max(DEVIATIONS * spread, LEAST_GAP * abs(middle))


@dataclass
class HopelessWatch:
    """Asks a run to end where it is hopeless; part of a `Progress` of `training`.

    Args:
        share: Of the run after which it is judged, once.
        others: Run folders of the other cells.
        direction: `max` or `min`.
    """

    share: float
    others: Sequence[Path]
    direction: str
    _run: Run | None = field(default=None, init=False)
    _judged: bool = field(default=False, init=False)

    def start(self, run: Run) -> None:
        """Note the run.

        Raises:
            DataError: it has no validation split to be judged by.
        """
        self._run = run
        if "validation" not in run.splits:
            raise DataError(
                "--drop-hopeless judges runs by the validation split, and the data has none: set "
                "`data.validation`, or leave the option out"
            )

    def show(self, record: Mapping[str, Any]) -> None:
        """Judge the run by the first evaluation after its share."""
        run = self._run
        if run is None or self._judged or not _is_validation(record):
            return
        clock = run.clock
        if clock.progress < self.share or clock.step >= clock.total_steps:
            return
        self._judged = True
        metric = best_metric(run) or run.task.main_metric
        value = run.metrics.get(f"validation/{metric}", math.nan)
        others = [value_at(folder, metric, int(record["step"])) for folder in self.others]
        known = [each for each in others if each is not None]
        if is_hopeless(value, known, larger_is_better=self.direction == "max"):
            middle = statistics.median(known)
            run.control.stop = (
                f"{HOPELESS}: {metric} {value:.4g} at step {clock.step}, median of {len(known)} other runs "
                f"{middle:.4g}"
            )


def _is_validation(record: Mapping[str, Any]) -> bool:
    return (
        record.get("kind") == "evaluation"
        and record.get("split") == "validation"
        and not record.get("view")
    )


def value_at(folder: Path, metric: str, step: int) -> float | None:
    """Return the validation metric of a run at a step, or at the first evaluation after it; None before."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        if '"evaluation"' not in line:
            continue
        try:
            record = json.loads(line)
        except ValueError:  # being written
            return None
        if _is_validation(record) and record["step"] >= step:
            value = record.get(metric)
            return float(value) if isinstance(value, (int, float)) else None
    return None
