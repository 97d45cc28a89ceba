"""Explanations of predictions: which component explains, which output of each row, as records.

Nothing in here knows a method: all are components of the kind `explanation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft_engine.catalog import HOMES, Planned
from sft_engine.errors import RecipeError
from sft_engine.recipe import DEFAULT_USE
from sft_engine.sentences import choices, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.catalog import Catalog
    from sft_engine.components import Explained, Explanation, Head
    from sft_engine.entries import Entry
    from sft_engine.flow import Run
    from sft_engine.recipe import Recipe

KIND = "explanation"


def chosen(recipe: Recipe, name: str, catalog: Catalog) -> list[str]:
    """Return the overrides that make a recipe name an explanation.

    Args:
        recipe: That of a run.
        name: Of the explanation; empty for the recipe's own, or the usual one if it has none.
        catalog: All that is installed.

    Raises:
        RecipeError: no installed plugin offers it.
    """
    if not name and KIND in recipe.tables:
        return []
    name = name or DEFAULT_USE[KIND]
    _require(catalog, name)
    return [f'{KIND}.use="{name}"']


def _require(catalog: Catalog, name: str) -> Entry:
    entry = catalog.get(KIND, name)
    if entry is None:
        known = [each.name for each in catalog.entries(KIND)]
        hint = suggest(name, known) or choices(known)
        if not known:
            hint = f"perhaps `pip install {HOMES[KIND][0]}` brings it"
        raise RecipeError(
            f'found "{name}", which no installed plugin offers as explanation; {hint}'
        )
    return entry


def explanation_of(run: Run) -> tuple[str, Explanation]:
    """Return name and component of the recipe's explanation, or of the usual one if it has none.

    Raises:
        RecipeError: it is not installed, or needs a library that is not.
    """
    for active in run.active:
        if active.planned.kind == KIND:
            return active.planned.name, active.component
    name = DEFAULT_USE[KIND]
    component = Planned(KIND, _require(run.plan.catalog, name), {}).build()
    if hasattr(component, "check"):
        component.check()
    return name, component


def outputs_of(head: Head, predictions: Mapping[str, Tensor]) -> list[int]:
    """Return which output of each example is explained: the class, or the likeliest label; else the first."""
    logits = predictions["logits"]
    if head.kind == "regression":
        return [0] * len(logits)
    found: list[int] = logits.nan_to_num(nan=float("-inf")).argmax(dim=1).tolist()
    return found


def explain(
    run: Run, rows: Sequence[dict[str, Any]], predictions: Mapping[str, Tensor]
) -> list[Explained]:
    """Explain what was predicted for rows.

    Args:
        run: Reopened, or at its end.
        rows: Inputs by role.
        predictions: Of the same rows, as `Task.predictions` returns them.

    Raises:
        RecipeError: this model cannot be explained so.
    """
    _, component = explanation_of(run)
    return component.explain(run, list(rows), outputs_of(run.task.head, predictions))
