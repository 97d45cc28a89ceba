"""`sft-engine tune`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import json_option, recipe_argument, study_option, verb
from sft_engine.cli.shown import new_console, say
from sft_engine.errors import SftError

if TYPE_CHECKING:
    from sft_engine.tuning import Tuned


@verb
@recipe_argument
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="What to search: log(LOW, HIGH), uniform(LOW, HIGH), int(LOW, HIGH), log_int(LOW, HIGH) or "
    "one_of(A, B, ...), in quotes; any other value holds for all trials. May be repeated.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    required=True,
    help="How many shall have ended: complete, pruned or failed. A larger number goes on.",
)
@study_option
@click.option(
    "--metric",
    default="",
    help="Of the validation split.  [default: checkpoint.best, or the task's main metric]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the search."
)
@click.option("--no-pruning", is_flag=True, help="Let every trial train to its end.")
@click.option("--quiet", "-q", is_flag=True, help="Print the result alone.")
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    output: str,
    *,
    no_pruning: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search for the hyper-parameters that are best on the validation split.

    Every trial is a run folder in OUTPUT/trials; the best one's recipe is OUTPUT/best.toml. The same command
    goes on after an interruption or a kill, and may be run several times at once: all work on the same study.
    The test split is not looked at. Needs the extra `tune`.
    """
    from sft_engine import verbs
    from sft_engine.tuning import TuneSettings

    console = new_console(quiet=quiet, as_json=as_json)
    tuned = verbs.tune(
        recipe,
        output=output,
        settings=TuneSettings(prune=not no_pruning, **settings),
        overrides=overrides,
        say=console.say,
    )
    if as_json:
        console.result(dataclasses.asdict(tuned))
        return
    if not quiet:
        _show(tuned)
    if tuned.best is None:
        raise SftError(_nothing(tuned))
    say(str(tuned.recipe) if quiet else f"\nbest: {tuned.best.name}, written as {tuned.recipe}")


def _show(tuned: Tuned) -> None:
    """Print a table with a row for each trial and a column for each key."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from sft_engine.output import Output

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    keys = list(dict.fromkeys(key for row in tuned.trials for key in row.values))
    for name in ("trial", "state", tuned.metric, *keys):
        table.add_column(Text(name))
    for row in tuned.trials:
        value = "" if row.value is None else f"{row.value:.4g}"
        shown = [_short(row.values.get(key, "")) for key in keys]
        table.add_row(row.name, row.state, value, *map(Text, shown))
    say("")
    Output(sys.stdout).rich().print(table)


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _nothing(tuned: Tuned) -> str:
    running = sum(row.state == "running" for row in tuned.trials)
    if running:
        return f"no trial is complete yet: {running} run in other processes"
    reasons = [f"{row.name}: {row.reason}" for row in tuned.trials if row.reason]
    first = f" ({reasons[0]})" if reasons else ""
    return f"none of {len(tuned.trials)} trials was completed{first}: search other values"
