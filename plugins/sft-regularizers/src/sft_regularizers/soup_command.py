"""`sft-engine soup`: parsing and printing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import json_option, verb
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_regularizers.soup_verb import Soup


@verb
@click.argument("runs", type=click.Path(), nargs=-1, metavar="RUN RUN...")
@click.option(
    "--output", "-o", type=click.Path(), required=True, help="A new or empty folder for the result."
)
@click.option(
    "--method",
    type=click.Choice(["uniform", "greedy"]),
    default="uniform",
    show_default=True,
    help="uniform: the mean of all. greedy: the best on validation, then, from better to worse, each run "
    "with which the mean is not worse there.",
)
@click.option(
    "--metric",
    default="",
    help="Of the validation split.  [default: checkpoint.best, or the task's main metric]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of every run's recipe, such as where the data is now. May be repeated.",
)
@click.option(
    "--allow-different-start",
    "different_start",
    is_flag=True,
    help="Average runs that began with other weights, or with another head (seeds.init).",
)
@click.option(
    "--mean-statistics",
    is_flag=True,
    help="Average batch norm's statistics too, instead of computing them anew on the training data.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the folder alone.")
@json_option
def command(
    runs: tuple[str, ...], output: str, *, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Average the final weights of finished runs.

    The runs must have one architecture, one task and one start: the same pretrained weights and the same
    `seeds.init`. The result is a folder that `evaluate`, `predict` and `export` take like that of a run,
    with `soup.json`: what each run is worth alone on the validation split, and which were chosen. Recipe
    and data are those of the first run.
    """
    from sft_regularizers.soup_verb import soup

    console = new_console(quiet=quiet, as_json=as_json)
    made = soup(runs, output=output, say=console.say, **options)
    if as_json:
        console.result({**dataclasses.asdict(made), "folder": str(made.folder)})
    elif quiet:
        say(str(made.folder))
    else:
        _show(made)
        console.metrics(made.split, made.metrics)
        say(f"\n{made.folder}")


def _show(made: Soup) -> None:
    count = sum(each["chosen"] for each in made.members)
    line = f"{made.method} soup of {count} of {len(made.members)} runs"
    if made.value is not None:
        line += f": validation {made.metric} {made.value:.4g}"
    say(f"\n{line}")
    if made.batch_norm == "recomputed":
        say("statistics of batch norm: computed anew on the training data")
