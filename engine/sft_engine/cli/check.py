"""`sft-engine check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_engine.cli.parameters import json_option, recipe_argument, set_option, verb
from sft_engine.cli.shown import definitions, new_console, say

if TYPE_CHECKING:
    from sft_engine.catalog import Plan


@verb
@recipe_argument
@set_option
@json_option
def command(recipe: str, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Check a recipe: names, options and their types, of plugins too; build and write nothing.

    Prints the components that a run would use and the versions they come from, or every problem with
    its file and line. Data and weights are not looked at, and torch is not imported.
    """
    from sft_engine import verbs

    plan = verbs.check(recipe, overrides=overrides)
    if as_json:
        new_console(as_json=True).result(_summary(recipe, plan))
        return
    definitions([(c.key, f"{c.name}  ({c.entry.owner})") for c in plan.components])
    say(f"{recipe}: ok")


def _summary(recipe: str, plan: Plan) -> dict[str, object]:
    components = [
        {
            "key": each.key,
            "kind": each.kind,
            "name": each.name,
            "distribution": each.entry.distribution,
            "version": each.entry.version,
            "options": dict(each.options),
        }
        for each in plan.components
    ]
    return {"recipe": recipe, "ok": True, "components": components}
