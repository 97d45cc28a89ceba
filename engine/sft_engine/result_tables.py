"""Tables of final metrics: all metrics, one row a class, the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft_engine.console_lines import number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_CLASSES = 20
MATRIX_CLASSES = 12
UNBOUNDED = 10_000


def tables(
    title: str,
    values: Mapping[str, Any],
    names: Sequence[str],
    console: Console,
    *,
    per_class: bool = False,
) -> Iterator[Table | str]:
    """Return what shows the metrics of a split.

    Args:
        title: Name of the split.
        values: Scalars by name, per-class scalars as `NAME/CLASS`, and `confusion_matrix`.
        names: Class names in the order of the confusion matrix.
        console: Tells how much room there is.
        per_class: Show a row for each class, however many.
    """
    if any(_is_whole(name, value) for name, value in values.items()):
        yield metric_table(title, values)
    classes = by_class(values)
    if classes and (per_class or len(classes) <= MOST_CLASSES):
        yield class_table(classes)
    elif classes:
        yield (
            f"values of {len(classes)} classes: in report.json, and by `sft-engine evaluate RUN --per-class`"
        )
    matrix = values.get("confusion_matrix")
    if matrix is not None and is_square(matrix, len(names)):
        yield matrix_table(matrix, names, console)


def metric_table(title: str, values: Mapping[str, Any]) -> Table:
    """Return the metrics of the whole split."""
    table = _table(title, "value")
    for name, value in values.items():
        if _is_whole(name, value):
            table.add_row(name, number(value))
    return table


def _is_whole(name: str, value: Any) -> bool:
    return isinstance(value, (int, float)) and "/" not in name


def by_class(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the per-class metrics: by class, then by metric."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        metric, slash, label = name.partition("/")
        if slash and isinstance(value, (int, float)):
            found.setdefault(label, {})[metric] = value
    return found


def class_table(classes: Mapping[str, Mapping[str, float]]) -> Table:
    """Return one row a class and one column a metric."""
    metrics = list(dict.fromkeys(metric for row in classes.values() for metric in row))
    table = _table("class", *metrics)
    for label, row in classes.items():
        table.add_row(label, *(number(row[m]) if m in row else "" for m in metrics))
    return table


def is_square(matrix: Any, size: int) -> bool:
    """Say whether this is a confusion matrix of so many classes (multi-label ones are not)."""
    return (
        isinstance(matrix, list)
        and 0 < len(matrix) == size
        and all(isinstance(row, list) and len(row) == size for row in matrix)
        and not isinstance(matrix[0][0], list)
    )


def matrix_table(
    matrix: Sequence[Sequence[int]], names: Sequence[str], console: Console
) -> Table | str:
    """Return the confusion matrix, with numbers for column names where room is short."""
    elsewhere = f"confusion matrix of {len(names)} classes: in report.json"
    if len(names) > MATRIX_CLASSES:
        return elsewhere
    numbered = [f"{i} {name}" for i, name in enumerate(names)]
    attempts = [(names, names), (numbered, [str(i) for i in range(len(names))])]
    for rows, columns in attempts:
        table = _table("true \\ predicted", *columns)
        for label, counts in zip(rows, matrix, strict=True):
            table.add_row(label, *map(str, counts))
        unbounded = console.options.update(max_width=UNBOUNDED)
        if console.measure(table, options=unbounded).maximum <= console.width:
            return table
    return elsewhere


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, because column names are class names, and a bracket in them is no markup.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text(first))
    for name in others:
        table.add_column(Text(name), justify="right")
    return table
