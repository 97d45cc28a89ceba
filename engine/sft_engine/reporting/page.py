"""report.html: one file that opens offline, drawn from what report.json and run.json say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from sft_engine.reporting import charts
from sft_engine.reporting.tables_of import Table, as_table, plain, signed, strongest
from sft_engine.reporting.verdict import MALFORMED, given_verdict, verdict
from sft_engine.reporting.verdict_matters import sections_of
from sft_engine.reporting.wording import brief, decimals_of, number
from sft_engine.sections import BLOCKS, LEVELS, is_picture

if TYPE_CHECKING:
    import jinja2

FIRST = ("curves", "results", "calibration")
"""Sections at the top of the page, in this order; those of components follow as they were added."""
LAST = ("diagnosis", "data", "examples")

NO_CHARTS = "This page has no charts, because matplotlib is not installed; the tables hold all of their figures."
LEVEL_WORDS = {
    "good": "Good",
    "info": "To know",
    "warning": "Warning",
    "serious": "Serious",
    "open": "Not looked at",
}
HEAT = 10
"""Shades of the cells of a matrix."""
SHADES = 5
"""Shades of the parts of a marked text."""
_LONG_CELL = 28
_MACHINE = (
    "python",
    "platform",
    "device",
    "device_name",
    "precision",
    "processes",
    "threads",
    "optimizer",
)


@dataclass(frozen=True)
class Source:
    """What a page is made of.

    Args:
        title: Its heading.
        report: report.json, or what a study or a comparison wrote, with `sections`.
        facts: run.json; empty if there is none.
        recipe: The recipe as text.
        kind: `Run`, `Study` or `Comparison`.
    """

    title: str
    report: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
    kind: str = "Run"


def html(source: Source) -> str:
    """Return the page; everything that a data set or a recipe may hold is escaped."""
    return (
        _templates()
        .get_template("page.html")
        .render(
            source=source,
            verdict=verdict_of(source),
            tiles=tiles(source),
            sections=[_shown(s, place) for place, s in enumerate(ordered(source.report))],
            provenance=provenance(source.facts),
            command=" ".join(map(str, source.facts.get("command", ()))),
            no_charts="" if charts.available() else NO_CHARTS,
        )
    )


def verdict_of(source: Source) -> dict[str, Any]:
    """Return the verdict: by the rules for a run, else the one that it brings."""
    return verdict(source.report) if source.kind == "Run" else given_verdict(source.report)


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("sft_engine.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["number"] = number
    templates.globals["words"] = LEVEL_WORDS
    templates.globals["dash"] = charts.dash
    templates.globals["colours"] = charts.SERIES
    return templates


def ordered(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the sections of a report in the order of the page."""
    given = sections_of(report)

    def place(section: Mapping[str, Any]) -> int:
        name = section.get("id")
        if name in FIRST:
            return FIRST.index(name) - len(FIRST)
        return LAST.index(name) + 1 if name in LAST else 0

    return sorted(given, key=place)


# --- Sections ------------------------------------------------------------------------------------


def _shown(section: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return a section with what its template needs, computed here."""
    given = section.get("blocks")
    given = given if isinstance(given, list) else [given]
    blocks = [_block(block, f"c{place}-{i}") for i, block in enumerate(given)]
    title = str(section.get("title") or section.get("id") or "Section")
    return {
        "id": f"s{place}-{section.get('id', '')}",
        "title": title,
        "summary": str(section.get("summary") or ""),
        "groups": _groups(blocks),
    }


def _block(block: Any, name: str) -> dict[str, Any]:
    """Return a block with its chart and table; one that cannot be shown is named instead."""
    kind = block.get("kind") if isinstance(block, Mapping) else None
    if kind not in BLOCKS:
        known = ", ".join(BLOCKS)
        return _unknown(f"a block of the kind {kind!r}; this page knows {known}")
    try:
        return _PREPARED[kind](block, name)
    except MALFORMED as error:
        title = block.get("title", "")
        return _unknown(f"the {kind} {title!r}: {type(error).__name__}: {error}")


def _unknown(what: str) -> dict[str, Any]:
    return {"kind": "unknown", "text": f"Not shown here: {what}. It stands in report.json."}


def _text(block: Mapping[str, Any], name: str) -> dict[str, Any]:  # noqa: ARG001
    paragraphs = [part.strip() for part in str(block["text"]).split("\n\n")]
    return {"kind": "text", "paragraphs": [part for part in paragraphs if part]}


def _table(block: Mapping[str, Any], name: str) -> dict[str, Any]:  # noqa: ARG001
    return {"kind": "table", "table": as_table(block)}


def _chart(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    kind = block["kind"]
    draw = charts.lines if kind == "lines" else charts.bars
    series = [each["name"] for each in block["series"]] if kind == "lines" else []
    return {
        "kind": "chart",
        "title": block["title"],
        "svg": draw(block, name) if charts.available() else "",
        "alternative": alternative(block),
        "series": series,
        "table": as_table(block),
        "tall": kind == "bars" and len(block["labels"]) > 12,  # noqa: PLR2004
    }


def alternative(block: Mapping[str, Any]) -> str:
    """Say in words what a chart shows: from where to where each curve goes, or the ends of the bars."""
    if block["kind"] == "bars":
        named = [p for p in zip(block["values"], block["labels"], strict=True) if p[0] is not None]
        if not named:
            return f"{block['title']}: no values."
        (least, where), (most, there) = min(named), max(named)
        return (
            f"Bars, {block['title']}: {len(named)} values from {number(least)} ({where}) to "
            f"{number(most)} ({there})."
        )
    said = []
    for series in block["series"]:
        values = [value for value in series["values"] if value is not None]
        if values:
            ends = f"from {number(values[0])} to {number(values[-1])}"
            extremes = f"between {number(min(values))} and {number(max(values))}"
            said.append(f"{series['name']} goes {ends}, {extremes}")
    over = f"over {block['x']['label']}"
    return f"Chart, {block['title']} {over}: {'; '.join(said) or 'no values'}."


def _matrix(block: Mapping[str, Any], name: str) -> dict[str, Any]:  # noqa: ARG001
    """Shade each cell: counts by their share of the row, other numbers from the least to the largest."""
    known = [v for values in block["values"] for v in values if v is not None]
    counts = all(isinstance(v, int) for v in known)
    least, largest = min(known, default=0.0), max(known, default=0.0)
    rows = []
    for label, values in zip(block["rows"], block["values"], strict=True):
        low, high = (0.0, sum(v or 0 for v in values)) if counts else (least, largest)
        cells = [
            {"value": v, "heat": 0 if v is None else round(HEAT * (v - low) / ((high - low) or 1))}
            for v in values
        ]
        rows.append({"label": label, "cells": cells})
    return {**block, "kind": "matrix", "shaded": rows, "decimals": decimals_of(known)}


def _examples(block: Mapping[str, Any], name: str) -> dict[str, Any]:  # noqa: ARG001
    rows = []
    for row in block["rows"]:
        image = row.get("image")
        cells = [(c, row[c]) for c in block["columns"] if c != "image" and row.get(c) is not None]
        longs = [(c, v) for c, v in cells if isinstance(v, str) and len(v) > _LONG_CELL]
        shorts = [cell for cell in cells if cell not in longs]
        said = ", ".join(f"{c} {number(v)}" for c, v in shorts)
        rows.append(
            {
                "image": image if is_picture(image) else "",
                "longs": longs,
                "shorts": shorts,
                "alternative": f"Picture of this example: {said}",
            }
        )
    return {"kind": "examples", "title": block["title"], "rows": rows}


def _marked(block: Mapping[str, Any], name: str) -> dict[str, Any]:  # noqa: ARG001
    """Shade each part by its share of the largest score of its text."""
    rows = []
    for row in block["rows"]:
        largest = max((abs(score) for score in row["scores"] if score), default=1)
        pieces = [
            {
                "text": part,
                "score": score,
                "signed": signed(score or 0),
                "side": "for" if (score or 0) > 0 else "against",
                "shade": round(SHADES * abs(score or 0) / largest),
            }
            for part, score in zip(row["parts"], row["scores"], strict=True)
        ]
        facts = [(name, value) for name, value in row["facts"].items() if value is not None]
        rows.append({"pieces": pieces, "strongest": strongest(row), "facts": facts})
    return {"kind": "marked", "title": block["title"], "note": block.get("note", ""), "rows": rows}


def _findings(block: Mapping[str, Any], name: str) -> dict[str, Any]:  # noqa: ARG001
    found = [
        {
            "name": each["name"],
            "level": each["level"] if each["level"] in LEVELS else "info",
            "evidence": each["evidence"],
            "step": each.get("step"),
            "remedies": list(each.get("remedies") or ()),
        }
        for each in block["findings"]
    ]
    found.sort(key=lambda each: -LEVELS.index(each["level"]))
    return {"kind": "findings", "findings": found}


_PREPARED = {
    "text": _text,
    "table": _table,
    "lines": _chart,
    "bars": _chart,
    "matrix": _matrix,
    "examples": _examples,
    "marked": _marked,
    "findings": _findings,
}


def _groups(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put charts that follow one another side by side, and tables that do."""
    groups: list[dict[str, Any]] = []
    for block in blocks:
        side_by_side = {"chart": "charts", "table": "tables", "matrix": "tables"}.get(block["kind"])
        if side_by_side and groups and groups[-1]["side_by_side"] == side_by_side:
            groups[-1]["blocks"].append(block)
        else:
            groups.append({"side_by_side": side_by_side, "blocks": [block]})
    return groups


# --- Facts ---------------------------------------------------------------------------------------


def tiles(source: Source) -> list[tuple[str, str]]:
    """Return the few figures at the top: result, examples, steps, time, parameters."""
    report, facts = source.report, source.facts
    metric = (report.get("task") or {}).get("metric", "")
    metrics, split = report.get("metrics") or {}, report.get("split") or ""
    found = []
    if metric in metrics:
        found.append((f"{metric}, {split}", brief(metrics[metric])))
    for name, count in (report.get("examples") or {}).items():
        found.append((f"{name} examples", number(count)))
    if report.get("steps"):
        found.append(("steps", number(report["steps"])))
    if "seconds" in report:
        found.append(("h:mm:ss", _duration(report["seconds"])))
    if "parameters" in facts:
        found.append(("parameters", _large(facts["parameters"])))
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _large(count: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def provenance(facts: Mapping[str, Any]) -> list[Table]:
    """Return what run.json says of machine, precision, seeds, data and versions."""
    rows = [
        (key.replace("_", " "), str(facts[key]))
        for key in _MACHINE
        if facts.get(key) not in (None, "")
    ]
    for title, key in (("seed", "seeds"), ("data fingerprint", "data")):
        each = facts.get(key)
        if isinstance(each, Mapping):
            rows += [(f"{title}, {name}", str(value)) for name, value in each.items()]
    versions = {**(facts.get("libraries") or {}), **(facts.get("plugins") or {})}
    tables = [
        plain("Machine, seeds and data", ["what", "value"], rows),
        plain("Versions", ["library or plugin", "version"], [*versions.items()]),
    ]
    return [table for table in tables if table["rows"]]
