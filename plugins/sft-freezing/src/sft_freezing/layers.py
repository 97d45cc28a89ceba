"""Layer groups by name: what the patterns in a recipe mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sft_engine import RecipeError

if TYPE_CHECKING:
    from sft_engine import LayerGroup


def listed(groups: Iterable[LayerGroup]) -> str:
    """Return the names of layer groups for a message."""
    return ", ".join(group.name for group in groups)


def matching_groups(pattern: str, groups: Sequence[LayerGroup], option: str) -> set[int]:
    """Return the indices of the layer groups whose name a shell pattern matches.

    Raises:
        RecipeError: it matches none; `option` is the key that names it.
    """
    found = {index for index, group in enumerate(groups) if fnmatchcase(group.name, pattern)}
    if not found:
        raise RecipeError(
            f'`{option}`: "{pattern}" matches no layer group; the model has {listed(groups)}'
        )
    return found
