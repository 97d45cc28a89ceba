"""Which layers get an adapter: all that are called below the head, or those that patterns name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft_engine import RecipeError
from sft_freezing.layers import listed

if TYPE_CHECKING:
    from sft_engine import LayerGroup

AUTO = "auto"

KINDS = {
    "lora": ("Linear", "Conv1D", "Conv1d", "Conv2d"),
    "ia3": ("Linear", "Conv1D", "Conv2d"),
    "adalora": ("Linear", "Conv1D"),
    "vera": ("Linear", "Conv1D"),
    "fourierft": ("Linear", "Conv1D"),
    "waveft": ("Linear", "Conv1D"),
    "randlora": ("Linear", "Conv1D"),
    "vblora": ("Linear", "Conv1D"),
    "loha": ("Linear", "Conv1d", "Conv2d"),
    "lokr": ("Linear", "Conv1d", "Conv2d"),
    "oft": ("Linear", "Conv2d"),
    "boft": ("Linear", "Conv2d"),
    "hra": ("Linear", "Conv2d"),
    "ln_tuning": ("LayerNorm",),
}
"""Classes of layers that a method of PEFT takes by itself; all others take `Linear`.

By exact name, for a subclass may use its weight in another way than PEFT thinks: timm's `Conv2dSame` pads,
its `ScaledStdConv2d` normalises the weight first.
"""


@dataclass(frozen=True)
class Layer:
    """A layer that could have an adapter.

    Args:
        path: Of the module.
        kind: Name of its class.
        group: Index of its layer group.
        obstacle: Why it cannot have one; empty if it can.
    """

    path: str
    kind: str
    group: int
    obstacle: str = ""


def called(model: nn.Module, forward: Callable[[nn.Module], Any]) -> set[str]:
    """Return the paths of the modules that a forward pass calls, in evaluation mode.

    A module whose weight is read by another one, as `nn.MultiheadAttention` reads that of its `out_proj`,
    is not called, and an adapter around it would be passed by.
    """
    found: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda _m, _i, path=path: found.add(path))
        for path, module in model.named_modules()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            forward(model.eval())
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return found


def layers_of(
    model: nn.Module, groups: Sequence[LayerGroup], used: Iterable[str], head: Sequence[str]
) -> list[Layer]:
    """Return the layers below the head, those with an obstacle too.

    Args:
        model: Without adapters.
        groups: Its layer groups, input first; the last one is the head.
        used: The result of `called`.
        head: Paths of the modules that train whole, beside the adapters.
    """
    used = set(used)
    named = dict(model.named_parameters())
    group_of = {
        id(named[name]): index for index, group in enumerate(groups) for name in group.parameters
    }
    modules = [(path, m) for path, m in model.named_modules() if _weight(m) is not None]
    owners = Counter(id(_weight(module)) for _, module in modules)
    found = []
    for path, module in modules:
        group = group_of[id(_weight(module))]
        if group == len(groups) - 1:
            continue
        obstacle = _obstacle(path, module, used, owners[id(_weight(module))], head)
        found.append(Layer(path, type(module).__name__, group, obstacle))
    return found


def _weight(module: nn.Module) -> nn.Parameter | None:
    weight = module._parameters.get("weight")  # noqa: SLF001  one that is computed is none
    return weight if isinstance(weight, nn.Parameter) else None


def _obstacle(
    path: str, module: nn.Module, used: set[str], owners: int, head: Sequence[str]
) -> str:
    if path not in used:
        return "is never called: its weight is read by a module around it"
    if owners > 1:
        return "shares its weight with another layer"
    if getattr(module, "groups", 1) > 1:
        return "is a grouped convolution, into which nothing can be merged"
    alike = [name for name in head if _taken_for(path, name)]
    if alike:
        return f"would be taken for the head `{alike[0]}`, which PEFT finds by the end of its name"
    return ""


def _taken_for(path: str, head: str) -> bool:
    """Whether PEFT would think that a module belongs to the head, by its rules of names."""
    return path.endswith(head) or bool(re.match(rf"(^|.*\.){re.escape(head)}($|\..*)", path))


def choose(
    method: str,
    patterns: Sequence[str],
    layers: Sequence[Layer],
    groups: Sequence[LayerGroup],
    option: str = "freezing.targets",
) -> list[str]:
    """Return the paths of the layers that get an adapter.

    Args:
        method: Name of PEFT's method, which decides what kinds of layers it takes by itself.
        patterns: `auto` for all that it takes; else shell patterns of layers, or of the end of their
            paths, or of layer groups. A pattern that also matches other kinds leaves those out.
        layers: The result of `layers_of`.
        groups: The layer groups.
        option: The key of the recipe, for messages.

    Raises:
        RecipeError: nothing matches, or what matches cannot have an adapter.
    """
    kinds = KINDS.get(method, ("Linear",))
    able = [layer for layer in layers if layer.kind in kinds]
    if list(patterns) == [AUTO]:
        found = [layer.path for layer in able if not layer.obstacle]
        if not found:
            raise RecipeError(
                f"`{option}`: {method} takes {' and '.join(kinds)} layers, and the model has none below "
                'the head that it could change; name layers, or take `use = "frozen"`'
            )
        return found
    chosen: dict[str, None] = {}
    for pattern in patterns:
        chosen |= dict.fromkeys(_matching(pattern, kinds, layers, groups, option))
    return list(chosen)


def _matching(
    pattern: str,
    kinds: Sequence[str],
    layers: Sequence[Layer],
    groups: Sequence[LayerGroup],
    option: str,
) -> list[str]:
    whole = {index for index, group in enumerate(groups) if fnmatchcase(group.name, pattern)}
    found = [each for each in layers if each.group in whole or _matches(each.path, pattern)]
    if not found:
        example = next((layer.path for layer in layers), "")
        raise RecipeError(
            f'`{option}`: "{pattern}" matches neither a layer below the head, such as `{example}`, nor a '
            f"layer group ({listed(groups[:-1])}); the head trains whole"
        )
    natural = [layer for layer in found if layer.kind in kinds]
    able = [layer for layer in natural or found if not layer.obstacle]
    if not able:
        worst = (natural or found)[0]
        raise RecipeError(
            f'`{option}`: "{pattern}" means `{worst.path}`, which {worst.obstacle}; name other layers, or '
            'write "auto"'
        )
    return [layer.path for layer in able]


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def of_known_models(table: Mapping[str, Sequence[str]], model: nn.Module) -> tuple[str, ...]:
    """Return what PEFT knows of a model of transformers by its type; empty if it does not know it."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return tuple(table.get(str(kind), ()))
