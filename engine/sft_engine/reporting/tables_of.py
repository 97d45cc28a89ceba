"""Blocks as plain tables: what a reader without charts sees, on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft_engine.reporting.wording import decimals_of

STRONGEST = 5
"""Parts of a marked text that are named beside it."""

Table = dict[str, Any]
"""`title`, `columns`, `rows`, `note` and, for each column, `numeric` and `decimals`."""


def as_table(block: Mapping[str, Any]) -> Table:
    """Return a block of numbers as a table.

    Raises:
        KeyError: it is not what its kind should be.
        ValueError: the lengths of its parts do not agree.
    """
    table = _TABLES[block["kind"]](block)
    return plain(table["title"], table["columns"], table["rows"], table["note"])


def plain(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = ""
) -> Table:
    """Return a table that says of each column whether it holds numbers, and with how many decimals.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells for {len(columns)} columns")
    numeric = [
        bool(rows) and not any(isinstance(row[i], str) for row in rows) for i in range(len(columns))
    ]
    return {
        "title": title,
        "columns": columns,
        "rows": rows,
        "note": note,
        "numeric": numeric,
        "decimals": [decimals_of(row[i] for row in rows) for i in range(len(columns))],
    }


def _table(block: Mapping[str, Any]) -> Table:
    keys = ("title", "columns", "rows")
    return {**{key: block[key] for key in keys}, "note": block.get("note", "")}


def _lines(block: Mapping[str, Any]) -> Table:
    columns, heads = [block["x"]["values"]], [block["x"]["label"]]
    for series in block["series"]:
        for key, suffix in (("values", ""), ("low", ", low"), ("high", ", high")):
            if key in series:
                columns.append(series[key])
                heads.append(series["name"] + suffix)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"title": block["title"], "columns": heads, "rows": rows, "note": ""}


def _bars(block: Mapping[str, Any]) -> Table:
    keys = [key for key in ("values", "low", "high") if key in block]
    heads = ["", *(block.get("label") or "value" if key == "values" else key for key in keys)]
    rows = [list(row) for row in zip(block["labels"], *(block[key] for key in keys), strict=True)]
    return {"title": block["title"], "columns": heads, "rows": rows, "note": ""}


def _matrix(block: Mapping[str, Any]) -> Table:
    corner = " \\ ".join(filter(None, (block.get("row_label"), block.get("column_label"))))
    rows = [[name, *values] for name, values in zip(block["rows"], block["values"], strict=True)]
    return {
        "title": block["title"],
        "columns": [corner, *block["columns"]],
        "rows": rows,
        "note": "",
    }


def _examples(block: Mapping[str, Any]) -> Table:
    columns = [name for name in block["columns"] if name != "image"]
    rows = [[row.get(name) for name in columns] for row in block["rows"]]
    return {"title": block["title"], "columns": columns, "rows": rows, "note": ""}


def _marked(block: Mapping[str, Any]) -> Table:
    facts = list(dict.fromkeys(name for row in block["rows"] for name in row["facts"]))
    rows = [
        ["".join(row["parts"]), strongest(row), *(row["facts"].get(name) for name in facts)]
        for row in block["rows"]
    ]
    columns = ["text", "what counts most", *facts]
    note = block.get("note", "")
    return {"title": block["title"], "columns": columns, "rows": rows, "note": note}


def strongest(row: Mapping[str, Any]) -> str:
    """Name the parts of a marked text that count most, each with its signed number."""
    scored = [
        (part.strip(), score)
        for part, score in zip(row["parts"], row["scores"], strict=True)
        if score
    ]
    scored.sort(key=lambda each: -abs(each[1]))
    # A comma may be a part.
    return " · ".join(f"{part} {signed(score)}" for part, score in scored[:STRONGEST])


def signed(score: float) -> str:
    """Write a number with its sign, three significant digits."""
    return f"{score:+.3g}".replace("-", "\N{MINUS SIGN}", 1 if score < 0 else 0)


_TABLES = {
    "table": _table,
    "lines": _lines,
    "bars": _bars,
    "matrix": _matrix,
    "examples": _examples,
    "marked": _marked,
}
