"""`sft-engine diagnose`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sft_engine.cli.parameters import json_option, run_argument, verb
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_engine.diagnosis import Finding


@verb
@run_argument
@click.option("--no-info", is_flag=True, help="Leave out what is merely worth knowing.")
@json_option
def command(run: str, *, no_info: bool, as_json: bool) -> None:
    """Say what is wrong with a run, with figures, and what to try.

    RUN is the run folder, of a run that has ended, failed, or goes on. Nothing in it is changed; neither its
    data nor its plugins are needed. Remedies are lines for its recipe.
    """
    from sft_engine import verbs
    from sft_engine.diagnosis.finding import verdict

    found = verbs.diagnose(run)
    if no_info:
        found = [each for each in found if each.level != "info"]
    if as_json:
        findings = [each.as_json() for each in found]
        new_console(as_json=True).result({"run": run, "findings": findings})
        return
    for finding in found:
        _show(finding)
    say(verdict(found))


def _show(finding: Finding) -> None:
    """Print a finding: level, name and step, evidence, remedies with their lines."""
    where = "" if finding.step is None else f", step {finding.step}"
    say(f"{finding.level}: {finding.name}{where}")
    say(click.wrap_text(finding.evidence, 100, "  ", "  "))
    for remedy in finding.remedies:
        say(click.wrap_text(remedy.why, 100, "  - ", "    "))
        for line in remedy.toml.splitlines():
            say(f"      {line}")
    say("")
