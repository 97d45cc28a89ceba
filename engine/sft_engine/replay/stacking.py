"""One model for several runs: what stands in for the layers in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import dropout, layer_norm

from sft_engine.replay.identity import listeners
from sft_engine.replay.trace import Refused

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.replay.stubs import Forward
    from sft_engine.replay.turns import Seat


def stacked(models: Sequence[nn.Module], seats: list[Seat]) -> list[tuple[nn.Module, Forward]]:
    """Return what stands in for the layers of the first model that differ between runs.

    Args:
        models: Of the runs.
        seats: Of the runs in the current step; their generators are those of dropout.

    Raises:
        Refused: a layer that trains, or that depends on the whole batch, is of a kind that cannot be stacked; or
            a component listens to a layer, which would be called for one run alone.
    """
    for model in models:
        if path := next(listeners(model), ""):
            raise Refused(f"there is a hook on `{path}`")
    own = [dict(model.named_modules()) for model in models]
    found: list[tuple[nn.Module, Forward]] = []
    for name, module in own[0].items():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            found.append((module, _stacked(name, [each[name] for each in own])))
        elif isinstance(module, nn.Dropout) and module.training and module.p:
            found.append((module, _own_draws(module, seats)))
        elif module.training and getattr(module, "running_mean", None) is not None:
            raise Refused(f"`{name}` takes its statistics from the whole batch")
    return found


def _stacked(name: str, own: list[nn.Module]) -> Forward:
    kind = type(own[0])
    if kind is nn.Linear:
        return _stacked_linear(own)
    if kind is nn.LayerNorm:
        return _stacked_norm(own)
    raise Refused(
        f"`{name}` is a {kind.__name__}: only linear layers and layer norms can be stacked"
    )


def _stacked_linear(own: list[Any]) -> Forward:
    """A linear layer for each part of the batch, as one batched matrix product."""

    def forward(x: Tensor) -> Tensor:
        weights = torch.stack([layer.weight for layer in own])
        parts = x.reshape(len(own), -1, x.shape[-1])
        if own[0].bias is None:
            found = torch.bmm(parts, weights.mT)
        else:
            biases = torch.stack([layer.bias for layer in own]).unsqueeze(1)
            found = torch.baddbmm(biases, parts, weights.mT)
        return found.reshape(*x.shape[:-1], -1)

    return forward


def _stacked_norm(own: list[Any]) -> Forward:
    def forward(x: Tensor) -> Tensor:
        plain = layer_norm(x, own[0].normalized_shape, eps=own[0].eps)
        parts = plain.reshape(len(own), -1, *plain.shape[1:])
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            if getattr(own[0], name) is not None:
                each = torch.stack([getattr(layer, name) for layer in own])
                between = (1,) * (parts.dim() - each.dim())
                parts = combine(parts, each.reshape(len(own), *between, *each.shape[1:]))
        found: Tensor = parts.flatten(0, 1)
        return found

    return forward


def _own_draws(module: nn.Dropout, seats: list[Seat]) -> Forward:
    """Dropout in which each part of the batch is drawn by its run's own generator."""

    def forward(x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise Refused("dropout on a device draws from the device's generator")
        between, parts = torch.get_rng_state(), []
        for seat, part in zip(seats, x.chunk(len(seats)), strict=True):
            torch.set_rng_state(seat.generators.torch)
            parts.append(dropout(part, module.p))
            seat.generators.torch = torch.get_rng_state()
        torch.set_rng_state(between)
        return torch.cat(parts)

    return forward
