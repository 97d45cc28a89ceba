"""`sft-engine run`."""

from __future__ import annotations

import click

from sft_engine.cli.parameters import json_option, quiet_option, recipe_argument, set_option, verb
from sft_engine.cli.shown import finish, new_console


@verb
@recipe_argument
@set_option
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    metavar="DIRECTORY",
    help="The run folder, new or empty; by default the first free one of runs/NAME, runs/NAME-2 …",
)
@quiet_option
@json_option
def command(
    recipe: str, overrides: tuple[str, ...], output: str | None, *, quiet: bool, as_json: bool
) -> None:
    """Train by a recipe and write a run folder.

    The folder holds the model as its library reads it, the resolved recipe, every metric and loss term,
    predictions and checkpoints. SIGTERM and Ctrl-C save a checkpoint and end with 75.
    """
    from sft_engine import verbs

    with new_console(quiet=quiet, as_json=as_json) as console:
        outcome = verbs.run(recipe, output=output, overrides=overrides, progress=console)
        finish(console, outcome)
