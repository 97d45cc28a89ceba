"""Which hooks there are, whose they are, and what is wrong with an implementation.

pluggy ignores a function that is not marked and a marked one whose name is no hook; here both are errors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pluggy

from sft_engine import hookspecs
from sft_engine.errors import RecipeError
from sft_engine.hookspecs import PROJECT
from sft_engine.sentences import choices, closed, suggest

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("sft_"))
MODULE_HOOKS = ("sft_register", "sft_check_recipe", "sft_cli", "sft_study_report")
"""Hooks of a plugin's module; all others are methods of its components."""

RUN_HOOKS = tuple(name for name in HOOKS if name not in MODULE_HOOKS)
REVERSED_HOOKS = (
    "sft_train_end",
    "sft_phase_end",
    "sft_epoch_end",
    "sft_step_end",
    "sft_teardown",
)
"""Hooks that undo or close something: the last component of the recipe runs first."""

MARK = f"{PROJECT}_impl"
"""Attribute that `hookimpl` leaves on a function: its options."""


def new_manager() -> pluggy.PluginManager:
    """Return a manager that knows all hooks and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def register(manager: pluggy.PluginManager, plugin: object, name: str, owner: str) -> None:
    """Register with pluggy, which refuses such things as a wrapper that does not yield.

    Raises:
        RecipeError: pluggy refuses it; `owner` says whose it is.
    """
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{owner} implements a hook wrongly: {closed(reason)}") from None


def hooks_of(owner: Any, allowed: Sequence[str], label: str) -> dict[str, Callable[..., Any]]:
    """Return the hook implementations of a module or component by name.

    Raises:
        RecipeError: a name is marked with `hookimpl` but is no hook, or belongs elsewhere, or is a
            hook that lacks the mark, or takes an argument that the hook does not give; `label`
            says whose it is.
    """
    found = {}
    for name in dir(owner):
        static = inspect.getattr_static(owner, name, None)
        function = getattr(static, "__func__", static)
        if not inspect.isroutine(function):
            continue
        mark = getattr(function, MARK, None)
        if mark is None and name in allowed:
            raise RecipeError(f"{label} has `{name}` without the mark `@hookimpl`; add it.")
        if mark is not None:
            hook = mark["specname"] or name
            _judge_hook(hook, allowed, label)
            found[hook] = getattr(owner, name)
            _judge_arguments(hook, found[hook], label)
    return found


def _judge_hook(name: str, allowed: Sequence[str], label: str) -> None:
    if name in allowed:
        return
    if name in MODULE_HOOKS:
        raise RecipeError(
            f"{label} has `{name}` as a method, allowed: a function of the plugin's module."
        )
    if name in HOOKS:
        raise RecipeError(
            f"{label} has `{name}` as a function of its module, allowed: a method of a component."
        )
    near = suggest(name, allowed) or choices(allowed)
    raise RecipeError(closed(f"{label} marks `{name}` with `@hookimpl`, which is no hook; {near}"))


def _judge_arguments(hook: str, function: Callable[..., Any], label: str) -> None:
    given = inspect.signature(getattr(hookspecs, hook)).parameters
    for taken in inspect.signature(function).parameters.values():
        plain = taken.kind is taken.POSITIONAL_OR_KEYWORD and taken.default is taken.empty
        if plain and taken.name not in given:
            near = suggest(taken.name, given) or choices(given)
            raise RecipeError(
                closed(f"{label} takes `{taken.name}` in `{hook}`, which does not give it; {near}")
            )


def is_wrapper(function: Callable[..., Any]) -> bool:
    """Whether an implementation wraps the others."""
    options = getattr(function, MARK)
    return bool(options["wrapper"] or options["hookwrapper"])
