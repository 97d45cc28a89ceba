"""`sft-engine resume`."""

from __future__ import annotations

from sft_engine.cli.parameters import json_option, quiet_option, run_argument, verb
from sft_engine.cli.shown import finish, new_console


@verb
@run_argument
@quiet_option
@json_option
def command(run: str, *, quiet: bool, as_json: bool) -> None:
    """Go on with an interrupted run, from its newest complete checkpoint.

    RUN is the run folder. The resumed run ends in the same weights as an uninterrupted one.
    """
    from sft_engine import verbs

    with new_console(quiet=quiet, as_json=as_json) as console:
        finish(console, verbs.resume(run, progress=console))
