"""Optimizer classes of torch and timm: found by name, options checked, built at their fastest.

Every parameter is handed over once, frozen or not, so an optimizer must skip those without a
gradient; torch's and timm's do. Those that cannot work in the engine's loop are refused by name.
"""

from __future__ import annotations

import importlib.util
import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from sft_engine.errors import RecipeError
from sft_engine.sentences import choices, show_value, suggest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch

Groups = list[dict[str, Any]]
Implementation = Literal["auto", "fused", "foreach", "for-loop"]

_ELSEWHERE = {
    "lr": "write it as `optimizer.lr`",
    "weight_decay": "write it as `optimizer.weight_decay`",
    "fused": 'write `optimizer.implementation = "fused"`',
    "foreach": 'write `optimizer.implementation = "foreach"`',
}
_INTERNAL = ("params", "differentiable", "maximize")
"""Arguments that would break the loop, or turn learning round."""

_REFUSED_TORCH = {
    "LBFGS": "it evaluates the loss several times a step",
    "SparseAdam": "it takes sparse gradients only",
    "Muon": 'it takes matrices only; `use = "timm"` with `name = "muon"` takes every parameter',
}
_REFUSED_TIMM = dict.fromkeys(
    ("kron", "kronc", "kronw"), "it draws random numbers that no checkpoint would hold"
)


# --- Building any optimizer -----------------------------------------------------------------------


def build_optimizer(
    cls: type[torch.optim.Optimizer],
    groups: Groups,
    *,
    implementation: Implementation = "auto",
    **options: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer in its fastest implementation, or in the one that is asked for.

    Args:
        cls: A class that takes parameter groups first.
        groups: Each with `params`, and `lr` and `weight_decay` where they differ from `options`.
        implementation: `auto` is fused where class and device have it, else foreach where the class
            has it. They agree only up to rounding, so a resumed run must not change it.
        options: Keyword arguments of the class.

    Raises:
        RecipeError: the class refuses a value, or does not have the implementation.
    """
    chosen: dict[str, Any] = choose_implementation(cls, groups, implementation, options)
    try:
        # Copies, because torch writes defaults into the dicts it is given.
        return cls([dict(group) for group in groups], **chosen, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`optimizer`: {cls.__name__} refuses its options: {error}") from error


def choose_implementation(
    cls: type[torch.optim.Optimizer],
    groups: Groups,
    implementation: Implementation,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, bool]:
    """Return the keyword arguments that select an implementation of an optimizer class."""
    known = [name for name in ("fused", "foreach") if name in inspect.signature(cls).parameters]
    if implementation == "for-loop":
        return dict.fromkeys(known, False)
    usable = [name for name in known if name == "foreach" or _fused_works(cls, groups, options)]
    if implementation == "auto":
        return {usable[0]: True} if usable else {}
    if implementation not in usable:
        places = ", ".join(sorted({str(device) for device, _ in _places(groups)}))
        raise RecipeError(
            f'`optimizer.implementation`: found "{implementation}", with which {cls.__name__} cannot '
            f"step on {places}, or not if weights thaw; allowed: {', '.join(['auto', *usable, 'for-loop'])}"
        )
    return {implementation: True}


def _fused_works(
    cls: type[torch.optim.Optimizer], groups: Groups, options: Mapping[str, Any]
) -> bool:
    """Try fused steps on two numbers of each device and dtype: torch says no only when it steps.

    One thaws after the first step, which fused SGD with momentum cannot bear.
    """
    import torch

    for device, dtype in _places(groups):
        pair = [torch.zeros(1, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
        try:
            optimizer = cls(pair, **{**options, "fused": True})
            for probe in pair:
                probe.grad = torch.zeros_like(probe)
                optimizer.step()
        except (RuntimeError, NotImplementedError, TypeError):
            return False
        except ValueError:  # of an option: building the optimizer itself will say it
            return True
    return True


def _places(groups: Groups) -> set[tuple[torch.device, torch.dtype]]:
    return {(p.device, p.dtype) for group in groups for p in group["params"]}


# --- Names and options of any optimizer -----------------------------------------------------------


def torch_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class of `torch.optim` with this name.

    Raises:
        RecipeError: there is none, or it cannot work in this loop.
    """
    import torch

    if name in _REFUSED_TORCH:
        raise RecipeError(
            f'`optimizer.name`: found "{name}", which cannot be used: {_REFUSED_TORCH[name]}'
        )
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and key not in _REFUSED_TORCH
    }
    if name not in known:
        raise RecipeError(_unknown("optimizer.name", name, known, "torch.optim"))
    return known[name]


def timm_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class behind one of timm's optimizer names.

    Raises:
        RecipeError: timm is missing or has no such optimizer, or it cannot work in this loop.
    """
    need_timm()
    from timm import optim

    registry: Any = optim
    if name not in (known := registry.list_optimizers()):
        raise RecipeError(_unknown("optimizer.name", name, known, "timm"))
    refused = _REFUSED_TIMM.get(name, "")
    if registry.get_optimizer_info(name).second_order:
        refused = "it needs second derivatives"
    if not refused:
        try:
            found = registry.get_optimizer_class(name, bind_defaults=False)
            return cast("type[torch.optim.Optimizer]", found)
        except (ImportError, AssertionError) as error:
            refused = str(error)
    raise RecipeError(f'`optimizer.name`: found "{name}", which cannot be used: {refused}')


def timm_defaults(name: str) -> dict[str, Any]:
    """Return the options that timm's own factory would add: momentum 0.9, variants such as nesterov."""
    from timm import optim

    info = cast("Any", optim).get_optimizer_info(name)
    return ({"momentum": 0.9} if info.has_momentum else {}) | (info.defaults or {})


def need_timm() -> None:
    """Raise RecipeError if timm is not installed; imports nothing."""
    if importlib.util.find_spec("timm") is None:
        raise RecipeError(
            "`optimizer.use`: this optimizer comes from timm, which is not installed: "
            "pip install 'sft-engine[timm]'"
        )


def check_options(cls: type[torch.optim.Optimizer], options: dict[str, Any]) -> dict[str, Any]:
    """Return options as the class takes them: lists become tuples.

    Raises:
        RecipeError: the class has no such option, or a recipe sets it elsewhere.
    """
    allowed = set(inspect.signature(cls).parameters) - {*_ELSEWHERE, *_INTERNAL}
    for name in options:
        if name in _ELSEWHERE:
            raise RecipeError(f"`optimizer.options.{name}`: not set here; {_ELSEWHERE[name]}")
        if name not in allowed:
            raise RecipeError(_unknown(f"optimizer.options.{name}", "", allowed, cls.__name__))
    return {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}


def _unknown(key: str, found: str, known: Collection[str], owner: str) -> str:
    name = found or key.rpartition(".")[2]
    # Case-blind, because "radam" is no close match of "RAdam".
    by_lower = {each.lower(): each for each in known}
    hint = suggest(name.lower(), by_lower)
    for lower, each in by_lower.items():
        hint = hint.replace(f"`{lower}`", f"`{each}`")
    where = f"`{key}`: found {show_value(found)}, which" if found else f"`{key}`:"
    return f"{where} {owner} does not have{'' if found else ' this option'}; {hint or choices(sorted(known))}"
