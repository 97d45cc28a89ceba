"""The report of a run, a study or a comparison: report.html, one file that opens offline, and Markdown.

Sections are JSON (`sft_engine.sections`), the verdict follows from report.json by rules (docs/report.md), and
pages are drawn from both. Jinja and matplotlib are imported when a page is drawn.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sft_engine.records import write_json, write_text
from sft_engine.reporting.page import Source, html
from sft_engine.reporting.reading import REPORT, read_source
from sft_engine.reporting.verdict import verdict

__all__ = ["PAGE", "Source", "write_page", "write_report"]

PAGE = "report.html"


def write_page(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, a study or a comparison, from the files there.

    The verdict in report.json is brought up to date: probes may have run since.

    Returns:
        The page.

    Raises:
        CheckpointError: the folder holds nothing to report.
        OutputError: a file cannot be written.
    """
    source = read_source(folder)
    if source.kind == "Run" and (folder / REPORT).exists():
        said = verdict(source.report)
        if source.report.get("verdict") != said:
            source = dataclasses.replace(source, report={**source.report, "verdict": said})
            write_json(folder / REPORT, source.report)
    write_text(folder / PAGE, html(source))
    return folder / PAGE


def write_report(folder: Path, output: Path | None, *, markdown: bool) -> Path:
    """Write the page, or the Markdown summary, to a file of the user's choice; nothing else changes.

    Args:
        folder: Of a run, a study or a comparison.
        output: The file; None for `report.html` or `report.md` in the folder.
        markdown: Write Markdown.

    Raises:
        CheckpointError: the folder holds nothing to report.
        OutputError: a file cannot be written.
    """
    if output is None and not markdown:
        return write_page(folder)
    from sft_engine.reporting.markdown import markdown as as_markdown

    source = read_source(folder)
    path = output or folder / "report.md"
    write_text(path, as_markdown(source) if markdown else html(source))
    return path
