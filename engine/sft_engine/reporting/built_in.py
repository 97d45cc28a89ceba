"""What every run reports: its sections, and the figures that the verdict is drawn from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import RecipeError
from sft_engine.metrics import direction_of
from sft_engine.reporting import curves, results, shown_examples
from sft_engine.reporting.certainty import interval
from sft_engine.reporting.gap import gap
from sft_engine.reporting.reliability import calibration, diagram
from sft_engine.sections import add_section, table

if TYPE_CHECKING:
    from sft_engine.evaluation import Evaluated
    from sft_engine.flow import Run

Report = dict[str, Any]

SPLITS = ("train", "validation", "test")
MOST_CELLS = 5_000_000
"""Examples times classes that are looked at one by one; of more, every second, third … example is."""


def add_built_in(run: Run, report: Report, final: Evaluated | None) -> None:
    """Add what is known of every run, whatever its components, at its end.

    Args:
        run: The run, its records written.
        report: What report.json will hold; gets `task`, `examples`, `views`, `gap`, `calibration`,
            `interval` and sections.
        final: The evaluation of `report["split"]`; None if there was none.
    """
    head = run.task.head
    metric = _main_metric(run, report["metrics"])
    report["task"] = {"kind": head.kind, "metric": metric, "direction": _direction(run, metric)}
    report["examples"] = {n: len(run.splits[n]) for n in SPLITS if n in run.splits}
    every = 1 if final is None else math.ceil(_cells(final) / MOST_CELLS) or 1
    records = [] if final is None else _records(run, final, every)
    measured = bool(records) and all("label" in record for record in records)
    if measured and head.kind == "classification":
        report["calibration"] = calibration(records)
    if measured:
        report["interval"] = interval(report["task"], report["metrics"], records)
    add_of_files(report, read_records(run.folder / "metrics.jsonl"), head.names)
    if records and final is not None:
        rows = run.splits[report["split"]].rows
        inputs = shown_examples.rows_of(rows, tuple(run.task.inputs), every)
        blocks = list(shown_examples.lists(records, inputs))
        if blocks:
            summary = f"Of the {report['split']} split{f', each {every}th' if every > 1 else ''}."
            add_section(report, "examples", "Examples to look at", blocks, summary=summary)


def _main_metric(run: Run, values: Mapping[str, Any]) -> str:
    """Return the metric that the verdict is about: the task's, or what the recipe computes instead."""
    numbers = [n for n, value in values.items() if curves.is_number(value) and "/" not in n]
    wanted = (run.task.main_metric, run.plan.checkpoint.best, *numbers)
    return next((name for name in wanted if name in numbers), "")


def _direction(run: Run, metric: str) -> str:
    given = run.plan.checkpoint
    if metric == given.best and given.direction != "auto":
        return given.direction
    try:
        return direction_of(metric)
    except RecipeError:  # its name says neither
        return "max"


def _cells(final: Evaluated) -> int:
    return max((tensor.numel() for tensor in final.predictions.values()), default=0)


def _records(run: Run, final: Evaluated, every: int) -> list[dict[str, Any]]:
    """Return records of the examples; of a part of them where a list of all would fill the memory."""
    return run.task.records({name: each[::every] for name, each in final.predictions.items()})


def add_of_files(report: Report, records: Sequence[curves.Record], names: Sequence[str]) -> None:
    """Add what follows from the metrics and records of a run alone."""
    best = report.get("best") or {}
    report["gap"] = gap(records, int(best.get("step") or report.get("steps") or 0))
    report["views"] = views_of(records, report.get("split", ""))
    found = curves.curves(records)
    if found:
        add_section(report, "curves", "Training", found, summary=_gap_sentence(report["gap"]))
    _add_results(report, names)
    if report.get("calibration"):
        blocks = diagram(report["calibration"])
        sentence = f"Expected calibration error {report['calibration']['ece']:.3f} over 15 bins."
        add_section(report, "calibration", "Calibration", blocks, summary=sentence)
    if report.get("preflight"):
        rows = [[each["level"], each["message"]] for each in report["preflight"]]
        noticed = table("Before training", ["level", "what was noticed"], rows)
        add_section(report, "data", "What was noticed in the data", [noticed])


def _gap_sentence(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    return (
        f"At step {found['step']}, whose weights were kept, the loss is {found['training']:.3g} in "
        f"training and {found['validation']:.3g} on the validation split."
    )


def _add_results(report: Report, names: Sequence[str]) -> None:
    metrics, split = report.get("metrics") or {}, report.get("split", "")
    if not metrics:
        return
    blocks = [
        results.metric_table(split, metrics),
        *results.confusion(metrics.get("confusion_matrix"), names),
    ]
    classes = results.by_class(metrics)
    if classes:
        blocks.append(results.class_table(classes))
    if report["views"]:
        metric = report.get("task", {}).get("metric", "")
        blocks.append(results.view_table(report["views"], metrics, metric))
    add_section(report, "results", "Results", blocks)


def views_of(records: Sequence[curves.Record], split: str) -> dict[str, dict[str, float]]:
    """Return the last metrics of a split in each view but the plain one, without those of classes."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if record.get("kind") == "evaluation" and record.get("split") == split and record["view"]:
            found[record["view"]] = {
                key: value
                for key, value in record.items()
                if curves.is_number(value) and "/" not in key and key not in curves.NO_METRICS
            }
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl; empty if there is none. A torn last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
