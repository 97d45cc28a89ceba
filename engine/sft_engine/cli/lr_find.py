"""`sft-engine lr-find`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import (
    json_option,
    recipe_argument,
    set_option,
    verb,
)
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_engine.lr_range import RangeTest
    from sft_engine.lr_range.applying import Change
    from sft_engine.lr_range.curve import Suggestion

_POSITIVE = click.FloatRange(min=0, min_open=True)


@verb
@recipe_argument
@set_option
@click.option(
    "--min", "lowest", type=_POSITIVE, default=1e-7, show_default=True, help="First learning rate."
)
@click.option(
    "--max", "highest", type=_POSITIVE, default=10.0, show_default=True, help="Last learning rate."
)
@click.option(
    "--steps", type=click.IntRange(min=10), default=100, show_default=True, help="Optimizer steps."
)
@click.option(
    "--rule",
    type=click.Choice(("valley", "steepest", "minimum")),
    default="valley",
    show_default=True,
    help="Whose suggestion is the result: the middle of the longest fall, the steepest point, or a "
    "tenth of the rate at the lowest loss.",
)
@click.option(
    "--apply", "apply_it", is_flag=True, help="Write the result into the recipe; comments stay."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    help="A picture (.png, .svg; needs the extra `plot`), or the numbers (.json).",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the result alone.")
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    rule: Suggestion,
    output: str | None,
    *,
    apply_it: bool,
    quiet: bool,
    as_json: bool,
    **sweep: Any,
) -> None:
    """Find a learning rate: train a few steps with a rising one, and look at the loss.

    The rate rises by equal factors from --min to --max; the test ends early when the loss explodes. All
    parameter groups keep their ratio to `optimizer.lr`. Nothing of the training is kept.
    """
    if sweep["lowest"] >= sweep["highest"]:
        raise click.BadParameter(
            f"found {sweep['lowest']:g}, allowed: less than --max ({sweep['highest']:g}).",
            param_hint="'--min'",
        )
    from sft_engine import verbs
    from sft_engine.lr_range import RangeSettings

    console = new_console(quiet=quiet, as_json=as_json)
    found = verbs.lr_find(
        recipe,
        overrides=overrides,
        settings=RangeSettings(**sweep),
        output=output,
        apply=rule if apply_it else None,
        say=console.say,
    )
    if as_json:
        console.result({**dataclasses.asdict(found), "rule": rule})
        return
    if not quiet:
        _show(found)
    if output is not None:
        console.say(f"written   {output}")
    lr = found.chosen(rule)
    if found.applied is None:
        say(f"result    {found.key} = {lr:g} ({rule}; the recipe has {found.before:g})")
    else:
        _show_change(found.applied, rule)


def _show(found: RangeTest) -> None:
    from sft_engine.lr_range.picture import text_plot

    say("")
    for line in text_plot(found):
        say(line)
    say(f"\nended     {found.reason}, after {len(found.lrs)} steps")
    for name, lr in found.suggestions.items():
        say(f"{name:<9} {lr:g}")


def _show_change(change: Change, rule: str) -> None:
    before = "not in the file" if change.before is None else f"{change.before:g}"
    where = f"{change.path}:{change.line}"
    say(f"applied   {where}: {change.key}: {before} -> {change.after:g} ({rule})")
