"""Arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from sft_engine.cli.group import SETTINGS

F = TypeVar("F", bound=Callable[..., Any])

recipe_argument = click.argument("recipe", type=click.Path())
run_argument = click.argument("run", type=click.Path())
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe: `--set optimizer.lr=2e-5`. May be repeated.",
)
quiet_option = click.option(
    "--quiet", "-q", is_flag=True, help="No progress and no tables: print the run folder alone."
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object, errors too; progress goes to standard error. NaN is a string.",
)
output_option = click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    help="Write to this file instead of standard output.",
)
study_option = click.option(
    "--output",
    "-o",
    type=click.Path(),
    metavar="DIRECTORY",
    required=True,
    help="Of the study: new, empty, or that of the same study, which goes on.",
)


def verb(function: F) -> click.Command:
    """Make a function a verb; its name and the first sentence of its docstring are the help."""
    return click.command(context_settings=SETTINGS)(function)
