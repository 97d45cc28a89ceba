"""Results of the final evaluation: all metrics, a row a class, the confusion matrix, other views."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_engine import sections
from sft_engine.reporting.curves import is_number

MOST_CLASSES = 50
"""Rows of the table of classes; of more, the worst ones are shown."""
MATRIX_CLASSES = 20
MOST_PAIRS = 15
MOST_METRICS = 40
_BINARY = 2


def metric_table(split: str, values: Mapping[str, Any]) -> sections.Block:
    """Return the metrics of a whole split."""
    rows = [[name, value] for name, value in values.items() if is_number(value) and "/" not in name]
    return sections.table(f"Metrics of the {split} split", ["metric", "value"], rows[:MOST_METRICS])


def by_class(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the `METRIC/CLASS` of a split by class, then by metric."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        metric, slash, label = name.partition("/")
        if slash and is_number(value):
            found.setdefault(label, {})[metric] = value
    return found


def class_table(classes: Mapping[str, Mapping[str, float]]) -> sections.Block:
    """Return one row a class; the worst by F1, or by the first metric, where there are many."""
    metrics = list(dict.fromkeys(metric for row in classes.values() for metric in row))
    names, note = list(classes), ""
    if len(names) > MOST_CLASSES:
        key = "f1" if "f1" in metrics else metrics[0]
        names = sorted(names, key=lambda name: _or_worst(classes[name].get(key)))[:MOST_CLASSES]
        note = f"The {MOST_CLASSES} lowest of {len(classes)} by {key}; report.json has all."
    rows = [[name, *(classes[name].get(metric) for metric in metrics)] for name in names]
    return sections.table("Each class", ["class", *metrics], rows, note=note)


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def confusion(matrix: Any, names: Sequence[str]) -> Iterator[sections.Block]:
    """Return what a confusion matrix shows: itself, and the pairs that are confused most."""
    if _is_multi_label(matrix, names):
        rows = [
            [name, at[1][1], at[0][1], at[1][0], at[0][0]]
            for name, at in zip(names, matrix, strict=True)
        ]
        heads = ["label", "rightly given", "wrongly given", "missed", "rightly left out"]
        yield sections.table("Each label, counted", heads, rows[:MOST_CLASSES])
    elif is_square(matrix, len(names)):
        if len(names) <= MATRIX_CLASSES:
            yield sections.matrix(
                "Confusion matrix",
                names,
                names,
                matrix,
                row_label="true class",
                column_label="predicted class",
            )
        if len(names) > _BINARY:
            yield _pairs(matrix, names)


def _is_multi_label(matrix: Any, names: Sequence[str]) -> bool:
    return (
        isinstance(matrix, list)
        and len(matrix) == len(names) > 0
        and all(_is_two_by_two(each) for each in matrix)
    )


def _is_two_by_two(each: Any) -> bool:
    return (
        isinstance(each, list)
        and len(each) == _BINARY
        and all(isinstance(row, list) and len(row) == _BINARY for row in each)
    )


def is_square(matrix: Any, size: int) -> bool:
    """Say whether this is the confusion matrix of so many classes."""
    return (
        isinstance(matrix, list)
        and len(matrix) == size > 0
        and all(isinstance(row, list) and len(row) == size for row in matrix)
        and not isinstance(matrix[0][0], list)
    )


def _pairs(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> sections.Block:
    pairs = [
        (count, sum(row), names[i], names[j])
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count > 0
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[2], pair[3]))
    rows = [
        [true, predicted, count, count / total]
        for count, total, true, predicted in pairs[:MOST_PAIRS]
    ]
    return sections.table(
        "Classes that are confused most",
        ["true class", "predicted class", "examples", "share of the true class"],
        rows,
    )


def view_table(
    views: Mapping[str, Mapping[str, Any]], plain: Mapping[str, Any], metric: str
) -> sections.Block:
    """Return the metrics of the views that components offered, beside the plain one."""
    every = [
        {k for k, v in view.items() if is_number(v) and "/" not in k} for view in views.values()
    ]
    names = [name for name in plain if name in set.union(set(), *every)]
    names = (
        [metric, *(n for n in names if n != metric)][:MOST_CLASSES] if metric in names else names
    )
    shown = names[:4]
    rows = [[name, *(values.get(n) for n in shown)] for name, values in views.items()]
    return sections.table(
        "Other views of the same split",
        ["view", *shown],
        [["as it is", *(plain.get(n) for n in shown)], *rows],
    )
