"""What methods share that compute the gradients of a window a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sft_engine import Run


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of several tensors as one vector, a scalar on their device; sharded ones too."""
    norm = nn.utils.get_total_norm(gradients)
    whole = getattr(norm, "full_tensor", None)
    return norm if whole is None else whole()


@dataclass
class Kept:
    """Gradients put aside, with the parameters that they are of."""

    gradients: list[tuple[nn.Parameter, Tensor]]

    def add(self) -> None:
        """Add them to what the parameters have now."""
        for parameter, gradient in self.gradients:
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)


def put_aside(run: Run) -> Kept:
    """Return copies of the gradients, before they are computed again."""
    return Kept([(p, p.grad.clone()) for p in run.model.parameters() if p.grad is not None])


@torch.no_grad()
def copy_all_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors over others, in place."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
