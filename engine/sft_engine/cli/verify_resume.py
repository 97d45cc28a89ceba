"""`sft-engine verify-resume`."""

from __future__ import annotations

import dataclasses

import click

from sft_engine.cli.parameters import (
    json_option,
    quiet_option,
    recipe_argument,
    set_option,
    verb,
)
from sft_engine.cli.shown import new_console, say

UNEQUAL = 1


@verb
@recipe_argument
@set_option
@click.option(
    "--steps", type=click.IntRange(min=2), default=12, show_default=True, help="Of a run."
)
@click.option(
    "--interrupt-at",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Step before which the second run is interrupted.",
)
@quiet_option
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    steps: int,
    interrupt_at: int,
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Show that a recipe, with its plugins, resumes bit for bit.

    Trains a few steps; trains them again, interrupts, and resumes in a fresh process. Prints the hash
    of either final state (weights, optimizer, random numbers, components). Ends with 1 if they differ.
    """
    if interrupt_at >= steps:
        raise click.BadParameter(
            f"found {interrupt_at}, allowed: less than --steps ({steps}).",
            param_hint="'--interrupt-at'",
        )
    from sft_engine.proof import verify_resume

    with new_console(quiet=quiet, as_json=as_json) as console:
        proof = verify_resume(
            recipe,
            overrides=overrides,
            steps=steps,
            interrupt_at=interrupt_at,
            progress=console,
        )
        if as_json:
            console.result({**dataclasses.asdict(proof), "equal": proof.equal})
    if not as_json:
        say(f"uninterrupted                  {proof.uninterrupted}")
        say(f"interrupted at step {interrupt_at:<4} of {steps:<4} {proof.resumed}")
        say(
            _verdict(
                states_equal=proof.uninterrupted == proof.resumed, losses_equal=proof.loss_equal
            )
        )
    return 0 if proof.equal else UNEQUAL


def _verdict(*, states_equal: bool, losses_equal: bool) -> str:
    if states_equal and losses_equal:
        return "equal: the states and every loss on the way"
    different = [
        what
        for what, equal in (("the states", states_equal), ("losses on the way", losses_equal))
        if not equal
    ]
    return f"UNEQUAL: {' and '.join(different)}"
