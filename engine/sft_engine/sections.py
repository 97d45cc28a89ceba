"""Sections of a report: what a part of it shows, as plain JSON that pages and programs read alike.

`report["sections"]` is a list of `{"id", "title", "summary", "blocks"}`. Each function below builds one
kind of block and checks it; whoever writes the same JSON by hand is as welcome. A component adds a section
in its hook:

    def sft_report(self, run, report):
        curve = lines("Accuracy", x=("severity", [0, 1, 2]), y="accuracy", series={"typos": [0.9, 0.8, 0.6]})
        add_section(report, "typos", "Keyboard typos", [curve], summary="Accuracy falls by 0.3.")

All figures that `report.html` shows stand in these blocks, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

Block = dict[str, Any]
Section = dict[str, Any]
Level = Literal["info", "warning", "serious"]

LEVELS: tuple[Level, ...] = get_args(Level)
"""How bad a finding is, the least first."""

BLOCKS = ("text", "table", "lines", "bars", "matrix", "examples", "marked", "findings")
"""The kinds of blocks that a page can show."""

_ID = re.compile(r"[a-z0-9][a-z0-9-]*")
_IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]*")


def add_section(
    report: dict[str, Any], name: str, title: str, blocks: Iterable[Block], *, summary: str = ""
) -> Section:
    """Add a section to a report, in place of one that has the same id.

    Args:
        report: What `sft_report` is given, or a report.json that was read.
        name: Its id: lower-case letters, digits and hyphens; the page links to it.
        title: Its heading.
        blocks: What it shows, in order.
        summary: One sentence that says what is to be seen.

    Returns:
        The section.

    Raises:
        ValueError: the id or a block is not what it must be.
    """
    if not _ID.fullmatch(name):
        raise ValueError(f"section id {name!r}: allowed are a-z, 0-9 and hyphens")
    section = {"id": name, "title": title, "summary": summary, "blocks": list(blocks)}
    for block in section["blocks"]:
        if not isinstance(block, dict) or "kind" not in block:
            raise ValueError(f"section {name!r}: {block!r} is no block, it has no `kind`")
    sections: list[Section] = report.setdefault("sections", [])
    for place, other in enumerate(sections):
        if other.get("id") == name:
            sections[place] = section
            return section
    sections.append(section)
    return section


def text(content: str) -> Block:
    """Return a paragraph; empty lines part paragraphs."""
    return {"kind": "text", "text": content}


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, note: str = ""
) -> Block:
    """Return a table.

    Args:
        title: Its caption.
        columns: Heads; the first column names the rows.
        rows: Texts, numbers and None, as many in each row as there are columns.
        note: What the reader has to know, below the table.

    Raises:
        ValueError: a row has another length.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    for row in cells:
        _same("table", title, "columns", len(columns), "cells of a row", len(row))
    return {
        "kind": "table",
        "title": title,
        "columns": [str(column) for column in columns],
        "rows": cells,
        "note": note,
    }


def lines(
    title: str,
    *,
    x: tuple[str, Sequence[float]],
    y: str,
    series: Mapping[str, Sequence[float | None]] | Iterable[Mapping[str, Any]],
    y_range: tuple[float, float] | None = None,
    log: bool = False,
) -> Block:
    """Return curves over a common x.

    Args:
        title: Of the chart.
        x: Label and values.
        y: Label.
        series: Values by name, or what `one_series` returns; None where there is no value.
        y_range: Where the axis begins and ends; None for where the values do.
        log: Draw y on a logarithmic scale; values must be above 0.

    Raises:
        ValueError: a series has another length than x.
    """
    given = (
        [one_series(name, values) for name, values in series.items()]
        if isinstance(series, Mapping)
        else [dict(each) for each in series]
    )
    label, values = x
    for each in given:
        for key in ("values", "low", "high"):
            if key in each:
                _same("lines", title, "x", len(values), f"{each['name']}.{key}", len(each[key]))
    return {
        "kind": "lines",
        "title": title,
        "x": {"label": label, "values": _numbers(values)},
        "y": {
            "label": y,
            "range": None if y_range is None else _numbers(y_range),
            **({"scale": "log"} if log else {}),
        },
        "series": given,
    }


def one_series(
    name: str,
    values: Sequence[float | None],
    low: Sequence[float | None] | None = None,
    high: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """Return a curve for `lines`, with the band around it if there is one."""
    band = {"low": low, "high": high}
    return {
        "name": name,
        "values": _numbers(values),
        **{key: _numbers(each) for key, each in band.items() if each is not None},
    }


def bars(
    title: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    *,
    label: str = "",
    low: Sequence[float | None] | None = None,
    high: Sequence[float | None] | None = None,
) -> Block:
    """Return bars, one a label; `low` and `high` are the ends of their intervals.

    Raises:
        ValueError: there are more or fewer values than labels.
    """
    given = {"values": values, "low": low, "high": high}
    for key, numbers in given.items():
        if numbers is not None:
            _same("bars", title, "labels", len(labels), key, len(numbers))
    return {
        "kind": "bars",
        "title": title,
        "labels": [str(each) for each in labels],
        "label": label,
        **{key: _numbers(each) for key, each in given.items() if each is not None},
    }


def matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    row_label: str = "",
    column_label: str = "",
) -> Block:
    """Return a matrix of numbers, shown as a table with shaded cells.

    Raises:
        ValueError: its shape is not that of the labels.
    """
    _same("matrix", title, "rows", len(rows), "rows of values", len(values))
    for row in values:
        _same("matrix", title, "columns", len(columns), "values of a row", len(row))
    return {
        "kind": "matrix",
        "title": title,
        "rows": [str(each) for each in rows],
        "columns": [str(each) for each in columns],
        "values": [_numbers(row) for row in values],
        "row_label": row_label,
        "column_label": column_label,
    }


def examples(title: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Block:
    """Return examples of the data: texts and numbers by column, and a small picture as `image`.

    Raises:
        ValueError: a row has a column that was not named, or an `image` that is no `data:` URI.
    """
    checked = []
    for row in rows:
        image = row.get("image")
        if image is not None and not is_picture(image):
            raise ValueError(f"examples {title!r}: `image` must be a data:image/…;base64 URI")
        unknown = [name for name in row if name not in columns and name != "image"]
        if unknown:
            raise ValueError(f"examples {title!r}: no column {unknown[0]!r}, has {list(columns)}")
        checked.append({name: _cell(value) for name, value in row.items()})
    return {"kind": "examples", "title": title, "columns": list(columns), "rows": checked}


def marked(title: str, rows: Iterable[Mapping[str, Any]], *, note: str = "") -> Block:
    """Return texts of which some parts count: shaded by size, with the sign of each.

    Args:
        title: Of all of them.
        rows: For each text `parts`, which are shown one right after the other; `scores`, a number for each part
            or None; and what else to say of the text, as `facts` by name.
        note: What the reader has to know, below the texts.

    Raises:
        ValueError: a text has more or fewer scores than parts.
    """
    checked = []
    for row in rows:
        parts, scores = row["parts"], row["scores"]
        _same("marked", title, "parts", len(parts), "scores", len(scores))
        facts = {str(name): _cell(value) for name, value in row.get("facts", {}).items()}
        checked.append(
            {"parts": [str(each) for each in parts], "scores": _numbers(scores), "facts": facts}
        )
    return {"kind": "marked", "title": title, "rows": checked, "note": note}


def is_picture(value: Any) -> bool:
    """Say whether this is a picture in a `data:` URI, and nothing that a page would run or fetch."""
    return isinstance(value, str) and _IMAGE.fullmatch(value) is not None


def findings(found: Iterable[Mapping[str, Any]]) -> Block:
    """Return findings of a diagnosis; `finding` builds them."""
    return {"kind": "findings", "findings": [dict(each) for each in found]}


def finding(
    name: str,
    level: Level,
    evidence: str,
    *,
    step: int | None = None,
    remedies: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Return a finding.

    Args:
        name: What was found, in the words of the field: `overfitting`.
        level: `info`, `warning` or `serious`.
        evidence: A sentence with the figures.
        step: Where it began; None if it has no place.
        remedies: For each why it helps, and the lines of TOML that do it.

    Raises:
        ValueError: there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"finding {name!r}: level {level!r}, allowed: {', '.join(LEVELS)}")
    return {
        "name": name,
        "level": level,
        "evidence": evidence,
        "step": None if step is None else int(step),
        "remedies": [{"why": why, "toml": toml} for why, toml in remedies],
    }


def _same(kind: str, title: str, first: str, wanted: int, second: str, found: int) -> None:
    if wanted != found:
        raise ValueError(f"{kind} {title!r}: {wanted} {first}, but {found} {second}")


def _cell(value: Any) -> str | int | float | None:
    """Return what JSON can write: numbers of numpy and torch become plain ones."""
    if value is None or isinstance(value, str):
        return value
    return _number(value)


def _numbers(values: Sequence[Any]) -> list[int | float | None]:
    return [None if value is None else _number(value) for value in values]


def _number(value: Any) -> int | float:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool):
        return int(plain)
    if not isinstance(plain, (int, float)):
        raise TypeError(f"{value!r} is neither a text nor a number")
    # Subclasses, such as those of numpy and enum, would not come back from JSON as they were.
    return int(plain) if isinstance(plain, int) else float(plain)
