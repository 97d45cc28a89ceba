"""`sft-engine probe`: parsing and printing."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import json_option, verb
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_probes.probing import Probed


@verb
@click.argument("model", type=click.Path())
@click.option(
    "--with",
    "names",
    multiple=True,
    metavar="NAME[,NAME...]",
    help="Probes; `sft-engine plugins` lists them. May be repeated.  [default: those of the recipe, or the "
    "usual ones of the task]",
)
@click.option(
    "--recipe",
    type=click.Path(),
    help="For a model that is no run's: task, data and backbone; the backbone's name becomes MODEL.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of a probe, `--set typos.severities=[0.1]`, or a key of the recipe. May be repeated.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    help="A new or empty folder for the results.  [default: probes/MODEL]",
)
@click.option("--update", is_flag=True, help="Write into the run's own report instead.")
@click.option("--quiet", "-q", is_flag=True, help="Print the folder alone.")
@json_option
def command(
    model: str, names: tuple[str, ...], *, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Probe a model: how it does where its inputs are disturbed, attacked or odd.

    MODEL is a run folder or, with --recipe, the folder or hub id of a model that others have trained: its
    head must be its own, and its classes those of the data. Writes probes.json (figures and the sections of
    a report) and predictions/.
    """
    from sft_probes.probing import probe

    console = new_console(quiet=quiet, as_json=as_json)
    asked = [name.strip() for each in names for name in each.split(",") if name.strip()]
    probed = probe(model, asked, say=console.say, **options)
    if as_json:
        console.result({**dataclasses.asdict(probed), "folder": str(probed.folder)})
    elif quiet:
        say(str(probed.folder))
    else:
        _show(probed)
        say(f"\n{probed.folder}")


def _show(probed: Probed) -> None:
    """Print a row for each severity of each probe, and what each section says."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from sft_engine.output import Output

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("probe", "severity", "metric", "value", "drop", "changed"):
        table.add_column(Text(name), justify="left" if name in ("probe", "metric") else "right")
    for name, facts in probed.probes.items():
        for place, severity in enumerate(facts.get("severities", ())):
            others = (_at(facts, key, place) for key in ("values", "drop", "changed"))
            shown = "clean" if place == 0 else str(severity)
            table.add_row(Text(name), shown, Text(facts["metric"]), *others)
    if table.row_count:
        say("")
        Output(sys.stdout).rich().print(table)
    say("")
    for section in probed.sections:
        say(f"{section['title']}: {section['summary']}")


def _at(facts: dict[str, Any], key: str, place: int) -> str:
    values = facts.get(key)
    value = None if values is None else values[place]
    return "" if value is None else f"{value:.3f}"
