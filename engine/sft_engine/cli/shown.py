"""What verbs print, by the engine's console, and only on rank 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sft_engine.cli.ending import rank

if TYPE_CHECKING:
    from sft_engine.console import Console
    from sft_engine.training import Outcome


def new_console(*, quiet: bool = False, as_json: bool = False) -> Console:
    """Return the console that shows progress and results."""
    from sft_engine.console import Console

    return Console(quiet=quiet, as_json=as_json)


def finish(console: Console, outcome: Outcome) -> None:
    """Print the result of a run, or with `--quiet` its folder alone."""
    console.finish(outcome)
    if console.quiet and not console.as_json:
        say(str(outcome.folder))


def say(line: str) -> None:
    """Print a line on standard output."""
    if not rank():
        click.echo(line)


def definitions(rows: list[tuple[str, str]], title: str = "") -> None:
    """Print names with what they mean, wrapped as in a help text; under a title, if there is one."""
    formatter = click.HelpFormatter(width=_width())
    if title:
        with formatter.section(title):
            formatter.write_dl(rows)
    elif rows:
        formatter.write_dl(rows)
    say(formatter.getvalue().rstrip("\n"))


def _width() -> int:
    import shutil

    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 120) - 2)
