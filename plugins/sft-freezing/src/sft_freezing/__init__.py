"""Which layers train when."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl
from sft_freezing.phases import unknown_phases


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the components; nothing heavy is imported before a run needs it."""
    catalog.add(
        "freezing",
        "frozen",
        "sft_freezing.frozen:Frozen",
        "Everything but the head, the first layer groups, or what matches a pattern, stays as it is.",
    )


@hookimpl
def sft_check_recipe(recipe: Any) -> Any:
    """Name phases that the recipe does not have."""
    return list(unknown_phases(recipe))
