"""Curves of a run: what metrics.jsonl says of losses, learning rate, gradient norm and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_engine import sections

Record = Mapping[str, Any]

MOST_POINTS = 100
"""Of a curve; more are put together, with the band from the least to the greatest of them."""
MOST_TERMS = 8
LOG_FROM = 300
"""Ratio of the greatest to the least loss from which its axis is logarithmic."""
MOST_METRICS = 6
LOSSES = ("nll", "loss", "mse")
"""Metrics of a split that are comparable with the task's loss in training, the best one first."""
NO_METRICS = {"kind", "split", "view", "step", "phase", "epoch", "seconds", "examples"}


def curves(records: Sequence[Record]) -> list[sections.Block]:
    """Return the charts of a run, empty if nothing was recorded.

    The chart `Loss` shows the total, the task's own loss and that of the validation split; further
    terms, learning rate, gradient norm and validation metrics follow.
    """
    train = of_training(records)
    validation = of_split(records, "validation")
    blocks = [_loss(train, validation), *_terms(train)]
    for title, key in (("Learning rate", "lr"), ("Gradient norm before clipping", "grad_norm")):
        blocks.append(_chart(title, title.split(" before")[0].lower(), [_points(train, key, key)]))
    blocks += _metrics(validation)
    return [block for block in blocks if block]


def of_training(records: Sequence[Record]) -> list[Record]:
    """Return the training records, the last one of each step: steps rolled back are repeated."""
    return _last_of_each_step(records, lambda record: record.get("kind") == "train")


def of_split(records: Sequence[Record], split: str) -> list[Record]:
    """Return the evaluations of a split in the plain view, the last one of each step."""
    return _last_of_each_step(
        records,
        lambda record: (
            record.get("kind") == "evaluation"
            and record.get("split") == split
            and not record.get("view")
        ),
    )


def _last_of_each_step(records: Sequence[Record], wanted: Callable[[Record], bool]) -> list[Record]:
    found = {record["step"]: record for record in records if wanted(record) and "step" in record}
    return [found[step] for step in sorted(found)]


def loss_of(record: Record) -> tuple[str, float] | None:
    """Return the metric of an evaluation that compares with the loss in training, and its value."""
    return next(((name, record[name]) for name in LOSSES if is_number(record.get(name))), None)


def is_number(value: Any) -> bool:
    """Say whether this is a number, NaN included."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- Charts --------------------------------------------------------------------------------------

Points = tuple[str, dict[int, tuple[float, float, float]]]
"""A name, and by step a mean with the least and the greatest of what it stands for."""


def _points(records: Sequence[Record], key: str, name: str) -> Points:
    """Return a curve, thinned to `MOST_POINTS`."""
    pairs = [(r["step"], float(r[key])) for r in records if is_number(r.get(key))]
    size = math.ceil(len(pairs) / MOST_POINTS)
    points = {}
    for start in range(0, len(pairs), size or 1):
        part = pairs[start : start + size]
        values = [value for _, value in part]
        points[part[-1][0]] = (sum(values) / len(values), min(values), max(values))
    return name, points


def _chart(title: str, y: str, curves: Sequence[Points], *, log: bool = False) -> sections.Block:
    """Return a chart of curves with steps of their own; empty if they are."""
    steps = sorted({step for _, points in curves for step in points})
    if not steps:
        return {}
    return sections.lines(
        title,
        x=("step", steps),
        y=y,
        series=[_series(name, points, steps) for name, points in curves if points],
        log=log,
    )


def _series(
    name: str, points: Mapping[int, tuple[float, float, float]], steps: Sequence[int]
) -> dict[str, Any]:
    columns = [[points[step][i] if step in points else None for step in steps] for i in range(3)]
    if columns[0] == columns[1] == columns[2]:
        return sections.one_series(name, columns[0])
    return sections.one_series(name, columns[0], columns[1], columns[2])


def _loss(train: Sequence[Record], validation: Sequence[Record]) -> sections.Block:
    several = len(term_names(train)) > 1
    curves = [_points(train, "loss", "training, all terms" if several else "training")]
    if several and any("loss/task" in record for record in train):
        curves.append(_points(train, "loss/task", "training, task alone"))
    found = next(filter(None, map(loss_of, validation)), None)
    if found:
        curves.append(_points(validation, found[0], f"validation ({found[0]})"))
    values = [each for _, points in curves for three in points.values() for each in three]
    wide = bool(values) and min(values) > 0 and max(values) > LOG_FROM * min(values)
    return _chart("Loss", "loss", curves, log=wide)


def term_names(train: Sequence[Record]) -> list[str]:
    """Return the names of the loss terms."""
    return sorted({key for record in train for key in record if key.startswith("loss/")})


def _terms(train: Sequence[Record]) -> list[sections.Block]:
    names = [name for name in term_names(train) if name != "loss/task"]
    return [
        _chart(f"Loss term {name[5:]}", "share of the loss", [_points(train, name, name[5:])])
        for name in names[:MOST_TERMS]
    ]


def _metrics(validation: Sequence[Record]) -> list[sections.Block]:
    """Return metrics within 0 and 1 in one chart, and each of the others in its own."""
    if len(validation) < 2:  # noqa: PLR2004 (one point is no curve; the table of results has it)
        return []
    names = [
        key
        for key in validation[-1]
        if key not in NO_METRICS and "/" not in key and is_number(validation[-1][key])
    ]
    shares: list[str] = []
    others: list[str] = []
    for name in names:
        values = [record[name] for record in validation if is_number(record.get(name))]
        within = all(0 <= value <= 1 for value in values)
        (shares if within and name not in LOSSES else others).append(name)
    curves = [_points(validation, name, name) for name in shares[:MOST_METRICS]]
    charts = [_chart("Validation metrics", "value", curves)] if curves else []
    shown = next(filter(None, map(loss_of, validation)), ("", 0.0))[0]
    return charts + [
        _chart(f"Validation {name}", name, [_points(validation, name, name)])
        for name in others[:MOST_METRICS]
        if name != shown
    ]
