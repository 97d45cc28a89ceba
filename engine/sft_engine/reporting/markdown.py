"""The report as Markdown: the verdict, and every section as text and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_engine.reporting.page import (
    LEVEL_WORDS,
    Source,
    alternative,
    ordered,
    provenance,
    tiles,
    verdict_of,
)
from sft_engine.reporting.tables_of import Table, as_table
from sft_engine.reporting.verdict import MALFORMED
from sft_engine.reporting.wording import number
from sft_engine.sections import BLOCKS, LEVELS

MOST_ROWS = 12
"""Of a chart's table: evenly over it, with the first and the last."""

_SPECIAL = re.compile(r"([\\`*_\[\]|#<>~!])")


def markdown(source: Source) -> str:
    """Return the report as Markdown, in which nothing of a data set is markup."""
    found = verdict_of(source)
    parts = [f"# {escaped(source.title)}", f"{source.kind} report of sft-engine.", "## Verdict"]
    parts += [f"**{escaped(found['headline'])}**"] if found["headline"] else []
    parts += ["\n".join(_point(each) for each in found["points"])]
    parts += [_pairs(tiles(source))]
    for section in ordered(source.report):
        parts += [f"## {escaped(str(section.get('title') or section.get('id') or 'Section'))}"]
        parts += [escaped(str(section.get("summary") or ""))]
        given = section.get("blocks")
        for block in given if isinstance(given, list) else [given]:
            parts += _shown(block)
    parts += ["## Provenance", *(_table(each) for each in provenance(source.facts))]
    if source.recipe:
        parts += [fenced(source.recipe, "toml")]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Return text of one line that Markdown shows as it is."""
    return (
        _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("&#", "&amp;#")
    )


def fenced(text: str, language: str = "") -> str:
    """Return a code block, its fence longer than any in the text."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _point(each: Mapping[str, str]) -> str:
    command = f" `{each['command']}`" if each.get("command") else ""
    word = LEVEL_WORDS[each["level"]]
    return f"- **{word}. {escaped(each['topic'])}.** {escaped(each['text'])}{command}"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return " · ".join(f"{escaped(name)}: {escaped(value)}" for name, value in pairs)


def _shown(block: Any) -> Iterator[str]:
    kind = block.get("kind") if isinstance(block, Mapping) else None
    if kind not in BLOCKS:
        yield f"*Not shown here: a block of the kind {escaped(repr(kind))}. It stands in report.json.*"
        return
    try:
        yield from list(_parts(kind, block))
    except MALFORMED as error:
        yield f"*Not shown here: a broken {kind} ({escaped(str(error))}). It stands in report.json.*"


def _parts(kind: str, block: Mapping[str, Any]) -> Iterator[str]:
    if kind == "text":
        yield from (escaped(part) for part in str(block["text"]).split("\n\n"))
    elif kind == "findings":
        for each in sorted(block["findings"], key=lambda f: -LEVELS.index(f["level"])):
            yield from _finding(each)
    else:
        yield f"### {escaped(block['title'])}"
        if kind in ("lines", "bars"):
            yield escaped(alternative(block))
        yield _table(as_table(block), thin=kind == "lines")


def _finding(each: Mapping[str, Any]) -> Iterator[str]:
    step = "" if each.get("step") is None else f" (from step {each['step']})"
    word = LEVEL_WORDS[each["level"]]
    yield f"**{word}. {escaped(each['name'])}**{step}: {escaped(each['evidence'])}"
    for remedy in each.get("remedies") or ():
        yield escaped(remedy["why"])
        if remedy["toml"]:
            yield fenced(remedy["toml"], "toml")


def _table(table: Table, *, thin: bool = False) -> str:
    rows = table["rows"]
    if thin and len(rows) > MOST_ROWS:
        places = {round(i * (len(rows) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)}
        rows = [rows[place] for place in sorted(places)]
    if not table["columns"]:
        return ""
    marks = [" ---: " if numeric else " --- " for numeric in table["numeric"]]
    lines = [_row([str(name) for name in table["columns"]]), f"|{'|'.join(marks)}|"]
    lines += [_row(list(map(number, row, table["decimals"]))) for row in rows]
    note = f"\n\n{escaped(table['note'])}" if table["note"] else ""
    return "\n".join(lines) + note


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"
