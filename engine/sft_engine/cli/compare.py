"""`sft-engine compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import json_option, verb
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_engine.comparing import Comparison


@verb
@click.argument("runs", metavar="RUN_OR_STUDY...", nargs=-1, required=True)
@click.option(
    "--metric", default="", help="By which to compare.  [default: the task's main metric]"
)
@click.option(
    "--view",
    default="",
    help="Compare on this view alone, such as `typos@0.1`.  [default: clean, and every probe]",
)
@click.option(
    "--margin",
    type=float,
    help="Differences up to this size, in units of the metric, do not matter: judge equivalence, and "
    "superiority by more than it.",
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Of the comparison.")
@click.option("--resamples", type=int, default=10_000, show_default=True, help="Of the bootstrap.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    help="Write everything to this JSON file, with the sections of a report.",
)
@json_option
def command(
    runs: tuple[str, ...],
    output: str | None,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which of several runs or studies is better, and with what certainty.

    RUN_OR_STUDY is the folder of a finished run or of a study, or `NAME=RUN,RUN`: several runs of one recipe
    under a name. All must have predicted the same examples.

    By bootstrap over examples, McNemar's test for two runs, permutation over seeds where there are several
    runs each, Friedman and Nemenyi for three or more; on the clean data and on every probe. What a verdict
    means is written in docs/compare.md.
    """
    from sft_engine import verbs

    found = verbs.compare(runs, output=output, **options)
    if as_json:
        new_console(as_json=True).result(found.as_json())
        return
    _show(found)
    if output:
        say(f"\nwritten: {Path(output)}")


def _show(found: Comparison) -> None:
    """Print the verdict, the tables of the sections, and the notes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from sft_engine.output import Output

    console = Output(sys.stdout).rich()
    for section in found.sections:
        console.print(Text(section["summary"]))
        for block in section["blocks"]:
            if block["kind"] == "text":
                console.print(Text(f"\n{block['text']}"))
            if block["kind"] != "table" or not block["rows"]:
                continue
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            for name in block["columns"]:
                table.add_column(Text(name))
            for row in block["rows"]:
                table.add_row(*(Text(_cell(value)) for value in row))
            console.print(Text(f"\n{block['title']}"))
            console.print(table)
        console.print()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
