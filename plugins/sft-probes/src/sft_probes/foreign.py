"""Models that are no run's: opened by a recipe's backbone, and only if they can be judged at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import RecipeError
from sft_engine.assemble import assemble
from sft_engine.recipe import dump_tables, parse_recipe
from sft_engine.verbs import check

if TYPE_CHECKING:
    from sft_engine import Run
    from sft_engine.catalog import Plan
    from sft_engine.devices import Precision

KEPT = ("seed", "seeds", "task", "data", "backbone", "train", "evaluation", "probe")
"""Tables of a recipe that say something of a model which has been trained already."""


def open_model(model: str, planned: Plan) -> tuple[Run, Precision]:
    """Open a model of others with task, data and probes of a recipe.

    The head must be the model's own, and its classes those of the data: what the model calls them is compared
    with the label names, and decides their order. A model that has no names for its classes is only taken
    if the recipe says the order, as `data.label_names`.

    Args:
        model: A folder or a hub id, for the backbone's option `name`.
        planned: The recipe.

    Raises:
        RecipeError: the model has no trained head for this task, or other classes.
    """
    plan = _reduced(planned, model)
    theirs = _own_names(plan)
    given = plan.data.label_names
    built = assemble(plan, Path())
    if built.run.task.head.kind != "regression" and not given:
        ours = built.run.task.head.names
        names = in_their_order(ours, theirs, model)
        if names != ours:
            built = assemble(replace(plan, data=replace(plan.data, label_names=names)), Path())
    require_own_head(built.run, model)
    return built.run, built.precision


def _reduced(planned: Plan, model: str) -> Plan:
    """Return the plan without all that is about training, with another backbone."""
    recipe = planned.recipe
    tables = {key: value for key, value in recipe.tables.items() if key in KEPT}
    tables["backbone"] = {**tables["backbone"], "name": model}
    return check(parse_recipe(dump_tables(tables), recipe.name))


def _own_names(plan: Plan) -> tuple[str, ...]:
    """Return what the model calls its classes; empty if it does not say.

    In the form that transformers writes into config.json, `id2label`; LABEL_0 and the like are no names.
    """
    planned = plan.one("backbone")
    assert planned is not None
    backbone = planned.build()
    backbone.open(plan.resolve)
    found: Any = getattr(getattr(backbone, "config", None), "id2label", None)
    if not isinstance(found, Mapping) or not found:
        return ()
    names = tuple(str(found[key]) for key in sorted(found, key=int))
    return () if all(n.upper().startswith("LABEL_") for n in names) else names


def in_their_order(ours: Sequence[str], theirs: Sequence[str], model: str) -> tuple[str, ...]:
    """Return our label names in the order of the model's classes, whatever their case.

    Args:
        ours: Of the data.
        theirs: Of the model; empty if it has none.
        model: For messages.

    Raises:
        RecipeError: the two are not the same.
    """
    say = f"say the order of the model's classes: --set 'data.label_names=[{_quoted(ours)}]'"
    if not theirs:
        raise RecipeError(
            f"{model} does not say what its classes are called, and the data has {', '.join(ours)}: {say}"
        )
    by_name = {name.casefold(): name for name in ours}
    if len(by_name) != len(ours) or {name.casefold() for name in theirs} != set(by_name):
        raise RecipeError(
            f"{model} has the classes {', '.join(theirs)}, and the data has {', '.join(ours)}: if they "
            f"mean the same, {say}"
        )
    return tuple(by_name[name.casefold()] for name in theirs)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def require_own_head(run: Run, model: str) -> None:
    """Refuse a model of which a part is drawn at random: what does not change with the seed was trained.

    Raises:
        RecipeError: naming what the model lacks.
    """
    torch.manual_seed(run.seeds.init + 1 & (2**63 - 1))
    again = run.backbone.build(run.task).state_dict()
    drawn = [
        name
        for name, value in run.model.state_dict().items()
        if not torch.equal(value.cpu(), again[name].cpu())
    ]
    if drawn:
        head = run.task.head
        more = f" and {len(drawn) - 1} more" if drawn[1:] else ""
        raise RecipeError(
            f"{model} is not trained for this task: {drawn[0]}{more} would be random, the task has "
            f"{head.outputs} outputs ({', '.join(head.names[:5])}); take a model that was, or train one "
            "with `sft-engine run`"
        )
