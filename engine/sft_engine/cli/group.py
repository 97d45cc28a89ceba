"""The verbs, loaded when they are asked for."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sft_engine.plugins import Plugins

VERBS = {
    "run": "Train by a recipe and write a run folder.",
    "check": "Check a recipe and every component in it; build and write nothing.",
    "resume": "Go on with an interrupted run.",
    "verify-resume": "Show that a recipe, with its plugins, resumes bit for bit.",
    "lr-find": "Find a learning rate: train a few steps with a rising one.",
    "groups": "Print layer groups, their learning rates, and what trains when.",
    "tune": "Search for the hyper-parameters that are best on the validation split.",
    "evaluate": "Evaluate a run on one of its splits or on other data.",
    "stability": "Train a recipe many times, and say how far data and seeds matter.",
    "compare": "Say which of several runs or studies is better.",
    "diagnose": "Say what is wrong with a run, with figures and remedies.",
    "predict": "Predict with a run: texts, a file or standard input.",
    "report": "Write the report of a run: a page that opens offline, or Markdown.",
    "export": "Export a run for others to load: ONNX, torch.export, or its own library.",
    "plugins": "List installed plugins and components; show or trace them.",
    "new-recipe": "Write a commented recipe for a task and a backbone.",
    "schema": "Print the JSON Schema of recipes, for editors.",
}
"""Verbs of the engine, in the order of the help, which is printed without importing them."""

EPILOG = (
    "Plugins may add verbs; `sft-engine plugins` lists them.\n\n"
    "Exit codes: 0 done; 1 other failure; 2 the recipe or the command line is wrong; 3 the data does not "
    "fit; 4 training diverged; 75 interrupted, `resume` goes on; 130 Ctrl-C outside of training."
)
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verbs(click.Group):
    """The engine's verbs, and those that plugins add with `sft_cli`.

    Plugins are loaded for a verb that the engine does not have, not for `--help`: it would take twice as
    long. `sft-engine plugins` lists their verbs.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the engine's verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a verb, or look among the plugins."""
        if cmd_name not in VERBS:
            return _of_plugins().get(cmd_name)
        module = importlib.import_module(f"sft_engine.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or suggest one."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"there is no verb {name!r}; {_advice(name)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def verbs_of_plugins(plugins: Plugins) -> dict[str, click.Command]:
    """Return the verbs that plugins add, by name; the engine's own names are not theirs to take."""
    theirs = click.Group()
    plugins.add_commands(theirs)
    return {name: theirs.commands[name] for name in sorted(theirs.commands) if name not in VERBS}


def _of_plugins() -> dict[str, click.Command]:
    from sft_engine.plugins import load_plugins

    return verbs_of_plugins(load_plugins())


def _advice(name: str) -> str:
    from difflib import get_close_matches

    if name.endswith(".toml"):
        return f"did you mean `sft-engine run {name}`?"
    if os.path.exists(os.path.join(name, "recipe.toml")):  # noqa: PTH110, PTH118  pathlib is slow to import
        return f"did you mean `sft-engine evaluate {name}` or `sft-engine predict {name}`?"
    known = [*VERBS, *_of_plugins()]
    close = get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"allowed: {', '.join(known)}."


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001, FBT001
    if value:
        from importlib.metadata import version

        click.echo(f"sft-engine {version('sft-engine')}")
        ctx.exit()


@click.group(
    cls=Verbs,
    name="sft-engine",
    invoke_without_command=True,
    context_settings=SETTINGS,
    epilog=EPILOG,
)
@click.option(
    "--version", is_flag=True, is_eager=True, callback=_show_version, help="Print the version."
)
@click.pass_context
def cli(ctx: click.Context, /, **_: object) -> None:
    """Fine-tune a pretrained model by a recipe, and see what the result is worth.

    Begin with `sft-engine new-recipe`, or with `sft-engine run RECIPE`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
