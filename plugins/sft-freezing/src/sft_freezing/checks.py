"""What a recipe cannot have together, said before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sft_engine import Problem
from sft_freezing.methods import adapter_problems
from sft_freezing.phases import unknown_phases

if TYPE_CHECKING:
    from sft_engine import Recipe

BY_DEPTH = ("layer-decay", "discriminative")
"""Set learning rates by depth; two of them would be multiplied."""

ONCE = ("bn-freeze", "auto-rgn")


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong between components of this plugin, and with what they need elsewhere."""
    yield from unknown_phases(recipe)
    yield from _twice(recipe)
    yield from _idle_patience(recipe)
    yield from adapter_problems(recipe)


def _twice(recipe: Recipe) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for index, table in enumerate(recipe.tables.get("extension", ())):
        use = str(table.get("use"))
        if use not in (*BY_DEPTH, *ONCE):
            continue
        what = "sets learning rates by depth" if use in BY_DEPTH else use
        if what in seen:
            both = f"{use} beside {seen[what]}: both set learning rates by depth"
            message = both if use in BY_DEPTH else f"{use} stands here twice"
            yield Problem(f"extension[{index}]", message, "leave one out")
        seen.setdefault(what, use)


def _idle_patience(recipe: Recipe) -> Iterator[Problem]:
    table = recipe.tables.get("freezing", {})
    evaluation = recipe.tables.get("evaluation", {})
    if table.get("use") != "lp-ft" or not table.get("patience"):
        return
    if evaluation.get("every_epochs") == 0 and not evaluation.get("every_steps"):
        yield Problem(
            "freezing.patience",
            "lp-ft watches the validation split, and `evaluation.every_epochs = 0` leaves it unseen",
            "set that to 1, or `evaluation.every_steps`",
        )
