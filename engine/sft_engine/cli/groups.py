"""`sft-engine groups`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft_engine.cli.parameters import json_option, recipe_argument, set_option, verb
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_engine.timetable import GroupLine, StageLine, Timetable


@verb
@recipe_argument
@set_option
@json_option
def command(recipe: str, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Print the layer groups of a recipe's model, their learning rates, and what trains when.

    Reads data and weights and builds the model; trains nothing and writes no run folder. Learning rates
    are those before the schedule. Steps count from 0.
    """
    from sft_engine import verbs

    found = verbs.groups(recipe, overrides=overrides)
    if as_json:
        new_console(as_json=True).result({"recipe": recipe, **dataclasses.asdict(found)})
        return
    _show(found)


def _show(found: Timetable) -> None:
    heads = ["layer group", "parameters", "lr", "trains in steps"]
    _table(heads, [_group_cells(group) for group in found.groups], right=(1,))
    total = sum(group.parameters for group in found.groups)
    say(f"{total:,} parameters in {len(found.groups)} layer groups, {found.steps} steps")
    for name, lr in found.phase_lr.items():
        say(f"in phase {name} `lr` is {lr:g}; the layer groups keep their ratio")
    say("")
    heads = ["from step", "epoch", "phase", "parameters", "what trains"]
    rows = [_stage_cells(stage, found.groups) for stage in found.stages]
    _table(heads, rows, right=(0, 1, 3))


def _group_cells(group: GroupLine) -> tuple[str, ...]:
    lr = f"{group.lr:.4g}"
    if group.least_lr != group.lr:
        lr = f"{group.least_lr:.4g} to {lr}"
    trains = ", ".join(f"{start} to {end - 1}" for start, end in group.trains)
    return (group.name, f"{group.parameters:,}", lr, trains or "never")


def _stage_cells(stage: StageLine, groups: Sequence[GroupLine]) -> tuple[str, ...]:
    names = ", ".join(_abridged(stage.groups, [group.name for group in groups])) or "nothing"
    return (
        str(stage.step),
        f"{stage.epoch:.4g}",
        stage.phase,
        f"{stage.parameters:,}",
        "everything" if len(stage.groups) == len(groups) else names,
    )


def _abridged(names: Sequence[str], everything: Sequence[str]) -> list[str]:
    """Write `block.3 … head` for layer groups that follow one another."""
    places = [everything.index(name) for name in names]
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    shown = []
    for run in runs:
        ends = [everything[place] for place in run]
        shown += [f"{ends[0]} … {ends[-1]}"] if ends[2:] else ends
    return shown


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
