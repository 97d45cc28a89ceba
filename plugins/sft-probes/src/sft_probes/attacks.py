"""FGSM and PGD as pure functions: the loss of any model is driven up within a ball around its inputs.

A loss takes inputs (n, ...) and returns that of each example (n,), each depending on its own input alone: the
model is in evaluation mode. Nothing here knows of images or texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2"]
Bounds = tuple[float, float] | None

PIXELS: Bounds = (0.0, 1.0)
_TINY = 1e-12


def gradient(loss: Loss, inputs: Tensor) -> Tensor:
    """Return the gradient of each example's loss by its own input, the shape of `inputs`; NaN becomes 0."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(inputs).sum(), inputs)
    return found.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def fgsm(
    loss: Loss,
    inputs: Tensor,
    radius: Tensor | float,
    *,
    norm: Norm = "linf",
    bounds: Bounds = PIXELS,
) -> Tensor:
    """Return `x + eps * sign(grad)`, clipped (Goodfellow et al. 2015, section 4).

    With the norm `l2` the step is `eps * grad / norm(grad)` (Miyato et al. 2017, equation 5).

    Args:
        loss: Of each example.
        inputs: (n, ...), detached.
        radius: eps, for all or for each example (n,).
        norm: Of the ball.
        bounds: Least and largest value of an input; None for any.
    """
    eps = _spread(radius, inputs)
    return _clipped(inputs + eps * _ascent(gradient(loss, inputs), norm), bounds)


def pgd(  # noqa: PLR0913 - the terms of the paper
    loss: Loss,
    inputs: Tensor,
    radius: Tensor | float,
    *,
    steps: int,
    step_size: Tensor | float,
    start: Tensor | None = None,
    norm: Norm = "linf",
    bounds: Bounds = PIXELS,
) -> Tensor:
    """Return the last of several steps up the loss, each projected to the ball (Madry et al. 2018, section 2).

    With one step of size `radius` and no start it is `fgsm`.

    Args:
        loss: Of each example.
        inputs: (n, ...), detached.
        radius: eps, for all or for each example (n,).
        steps: How many.
        step_size: alpha, for all or for each example (n,).
        start: What is added to the inputs first, within the ball; None begins at the inputs.
        norm: Of the ball.
        bounds: Least and largest value of an input; None for any.
    """
    eps, alpha = _spread(radius, inputs), _spread(step_size, inputs)
    found = inputs if start is None else _clipped(inputs + start, bounds)
    for _ in range(steps):
        moved = found + alpha * _ascent(gradient(loss, found), norm)
        found = _clipped(_projected(moved, inputs, eps, norm), bounds)
    return found


def strongest(loss: Loss, candidates: Sequence[Tensor]) -> Tensor:
    """Return for each example that of several inputs (n, ...) whose loss is greatest, the first of equals."""
    if len(candidates) == 1:
        return candidates[0]
    with torch.no_grad():
        losses = torch.stack([loss(each) for each in candidates])
    best = losses.nan_to_num(nan=float("inf")).argmax(dim=0)
    return torch.stack(list(candidates))[best, torch.arange(len(best), device=best.device)]


def _ascent(found: Tensor, norm: Norm) -> Tensor:
    """Return the steepest direction in a norm, of length 1; 0 where the gradient is."""
    if norm == "linf":
        return found.sign()
    return found / _lengths(found).clamp_min(_TINY)


def _projected(moved: Tensor, inputs: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return torch.minimum(torch.maximum(moved, inputs - eps), inputs + eps)
    away = moved - inputs
    return inputs + away * (eps / _lengths(away).clamp_min(_TINY)).clamp_max(1)


def _lengths(vectors: Tensor) -> Tensor:
    """Return the L2 norm of each example, shaped to be spread over it."""
    return _spread(vectors.flatten(1).norm(dim=1), vectors)


def _spread(values: Tensor | float, inputs: Tensor) -> Tensor:
    """Return one number, or one for each example, in a shape that goes with inputs (n, ...)."""
    numbers = torch.as_tensor(values, dtype=inputs.dtype, device=inputs.device)
    return numbers.reshape(-1, *[1] * (inputs.ndim - 1)) if numbers.ndim else numbers


def _clipped(inputs: Tensor, bounds: Bounds) -> Tensor:
    return inputs if bounds is None else inputs.clamp(*bounds)
