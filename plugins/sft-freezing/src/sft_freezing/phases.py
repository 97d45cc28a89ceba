"""The phases in which a freezing component is at work, checked against those of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sft_engine import Problem

if TYPE_CHECKING:
    from sft_engine import Recipe


def unknown_phases(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem for each phase that `[freezing]` names and the recipe does not have."""
    wanted = recipe.tables.get("freezing", {}).get("phases", ())
    known = [str(phase.get("name")) for phase in recipe.tables.get("phase", ())]
    for index, name in enumerate(wanted):
        if name not in known:
            have = (
                f"it has: {', '.join(known)}" if known else "it has none: write `[[phase]]` tables"
            )
            yield Problem(f"freezing.phases[{index}]", f'the recipe has no phase "{name}"', have)
