"""`sft-engine new-recipe`."""

from __future__ import annotations

from pathlib import Path

import click

from sft_engine.cli.files import whole_file
from sft_engine.cli.parameters import output_option, verb
from sft_engine.cli.shown import say
from sft_engine.errors import OutputError


@verb
@click.option(
    "--task", default="text-classification", show_default=True, help="Name of a task component."
)
@click.option(
    "--backbone", default="transformers", show_default=True, help="Name of a backbone component."
)
@click.option("--data", default="csv", show_default=True, help="Name of a data component.")
@output_option
def command(task: str, backbone: str, data: str, output: str | None) -> None:
    """Write a commented recipe for a task, a backbone and a kind of data; asks nothing.

    Every option stands in it with its help and its default, commented out. What you must fill in is in
    capitals. `sft-engine plugins` lists what can be named.
    """
    if output and Path(output).exists():
        raise OutputError(f"{output} exists and is left as it is; choose another --output.")
    from sft_engine.new_recipe import new_recipe
    from sft_engine.plugins import load_plugins

    text = new_recipe(task, backbone, data, load_plugins())
    if output is None:
        say(text.rstrip("\n"))
        return
    with whole_file(output) as file:
        file.write(text)
    say(f"{output}: written; fill in what is in capitals, then `sft-engine check {output}`")
