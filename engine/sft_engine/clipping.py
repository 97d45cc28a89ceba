"""Gradient clipping by norm (Pascanu et al. 2013, "On the difficulty of training recurrent networks")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def clip_gradients(
    parameters: Sequence[torch.nn.Parameter], limit: float, *, sharded: bool = False
) -> Tensor:
    """Scale gradients so that their joint norm is at most `limit`; return the norm that they had.

    The same bits as `torch.nn.utils.clip_grad_norm_`, without the multiplication where it would be by
    one and, on a GPU, without a synchronization.

    Args:
        parameters: Those without gradient are passed over.
        limit: Largest norm; 0 measures and scales nothing.
        sharded: Gradients are spread over ranks (FSDP).

    Returns:
        A scalar on the device of the gradients; zero if there is no gradient.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    if sharded:
        return _clip_sharded(parameters, limit)
    norms = torch._foreach_norm(grads)  # noqa: SLF001 (as torch's own clipping)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if not limit:
        return norm
    # Within rounding of the limit the exact factor decides; well below it, it is one.
    if norm.device.type != "cpu" or not norm.item() < 0.999 * limit:
        torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _clip_sharded(parameters: Sequence[torch.nn.Parameter], limit: float) -> Tensor:
    sharded: Any = torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    norm: Tensor = sharded.full_tensor() if hasattr(sharded, "full_tensor") else sharded
    return norm
