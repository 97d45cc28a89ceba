"""How a command ends: the exit code, and one sentence where it failed.

With several processes, rank 0 prints whatever ends the run. Another rank prints what went wrong with
itself, its number in front, because it may be the only one to know (a plugin that this machine lacks);
it is silent about what it heard from others and about what all agree upon before they stop.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from sft_engine.errors import DivergedError, Interrupted, SftError

FAILED = 1
BY_CTRL_C = 130
"""As a shell reports a program that SIGINT ended. In training a signal is `Interrupted`, 75."""

AGREED = (DivergedError, Interrupted, click.Abort)
"""What every rank meets at the same step, or at the same keystroke."""

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def rank() -> int:
    """Return the rank of this process as its launcher says, by the variables that Accelerate reads."""
    given = (os.environ.get(name, "") for name in _RANKS)
    return next((int(text) for text in given if text.isdigit()), 0)


def exit_code_of(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command; print one sentence, or with `--json` one object, if it fails.

    Returns:
        The exit code. An exception that is no user's mistake is raised after it was reported.
    """
    as_json = "--json" in _before_texts(arguments)
    try:
        code = command.main(list(arguments), prog_name="sft-engine", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return FAILED
    except (click.Abort, click.ClickException, SftError) as error:
        code = _code(error)
        if not rank() or not _is_said_elsewhere(error):
            _report(_sentence(error), code, as_json=as_json)
        return code
    except Exception as error:
        if as_json and not rank():
            _print_json(f"{type(error).__name__}: {error}", FAILED)
        raise
    return code if isinstance(code, int) else 0


def _before_texts(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _is_said_elsewhere(error: Exception) -> bool:
    return isinstance(error, AGREED) or getattr(error, "elsewhere", False)


def _code(error: Exception) -> int:
    return BY_CTRL_C if isinstance(error, click.Abort) else int(getattr(error, "exit_code", FAILED))


def _sentence(error: Exception) -> str:
    """Return the message, with the component in which it was raised if the engine noted one."""
    if isinstance(error, click.Abort):
        return "stopped by Ctrl-C."
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        where = f" See `{context.command_path} --help`." if context else ""
        return f"{error.format_message()}{where}"
    notes = "; ".join(getattr(error, "__notes__", ()))
    return f"{error} ({notes})" if notes else str(error)


def _report(message: str, code: int, *, as_json: bool) -> None:
    if as_json and not rank():
        _print_json(message, code)
        return
    label = click.style("error:", fg="red", bold=True)
    prefix = f"[rank {rank()}] {label}" if rank() else label
    for line in message.splitlines():
        click.echo(f"{prefix} {line}", err=True)


def _print_json(message: str, code: int) -> None:
    import json

    click.echo(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))


def _discard_output() -> None:
    """Let the interpreter flush what nobody reads any more, instead of a second error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
