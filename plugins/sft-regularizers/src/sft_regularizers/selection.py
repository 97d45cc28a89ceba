"""Which weights a component is about: by pattern, by place in the model, with their learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from sft_engine import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import LayerGroup, Run

Parameters = dict[str, nn.Parameter]

MATRIX = 2
"""Dimensions of the least that a penalty is about by default: biases and norm weights are left alone."""


def matching(groups: Sequence[LayerGroup], patterns: Iterable[str], key: str) -> set[str]:
    """Return the names of the parameters that match a pattern, themselves or by their layer group.

    Args:
        groups: The layer groups, input first.
        patterns: Shell patterns, such as `block.*` or `*.weight`.
        key: Of the recipe, for the message.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {
            name
            for group in groups
            for name in group.parameters
            if fnmatchcase(group.name, pattern) or fnmatchcase(name, pattern)
        }
        if not hits:
            known = ", ".join(group.name for group in groups)
            raise RecipeError(
                f'`{key}`: "{pattern}" matches neither a layer group ({known}) nor a parameter, such '
                f"as `{groups[0].parameters[0]}`"
            )
        found |= hits
    return found


def chosen(run: Run, only: Sequence[str], key: str) -> Parameters:
    """Return the parameters that match; without patterns all weights of two dimensions or more."""
    if only:
        names = matching(run.layer_groups, only, key)
        return {n: p for n, p in run.model.named_parameters() if n in names}
    return {n: p for n, p in run.model.named_parameters() if p.ndim >= MATRIX}


def trainable(parameters: Parameters) -> Parameters:
    """Return those that train now."""
    return {n: p for n, p in parameters.items() if p.requires_grad}


def split_head(run: Run) -> tuple[Parameters, Parameters]:
    """Return the parameters of the backbone and those of the head, which is the last layer group."""
    head = set(run.layer_groups[-1].parameters)
    everything = dict(run.model.named_parameters())
    return (
        {n: p for n, p in everything.items() if n not in head},
        {n: p for n, p in everything.items() if n in head},
    )


def last_linear(run: Run, who: str) -> nn.Linear:
    """Return the last linear layer of the head: what goes in are the features of an example.

    Raises:
        RecipeError: the head has none.
    """
    head = set(run.layer_groups[-1].parameters)
    found = [
        module
        for name, module in run.model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in head
    ]
    if not found:
        raise RecipeError(
            f"{who} needs a linear layer in the last layer group, `{run.layer_groups[-1].name}` of "
            f"{type(run.model).__name__}, which has none: leave {who} out"
        )
    return found[-1]


def rates(run: Run, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, float]]:
    """Yield the name and the current learning rate of each parameter."""
    by_id = {id(p): g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
    for name, parameter in parameters.items():
        yield name, float(by_id[id(parameter)])


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that training does not change."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def beside(saved: Mapping[str, Tensor], tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return saved tensors on the devices of those that they belong to."""
    return {name: tensor.to(tensors[name].device) for name, tensor in saved.items()}
