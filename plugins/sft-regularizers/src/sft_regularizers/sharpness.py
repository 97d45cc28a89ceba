"""Sharpness-aware minimization: the gradient at the worst point near the weights (SAM, ASAM)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from sft_engine import Capabilities, hookimpl
from sft_regularizers.answers import frozen_statistics
from sft_regularizers.replays import copy_all_, total_norm

if TYPE_CHECKING:
    from sft_engine import Run

MATRIX = 2


# --- The methods themselves, for any loop ---------------------------------------------------------


@torch.no_grad()
def worst_step(gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """Return `rho * g / |g|` over all gradients (Foret et al. 2020, equation 2); 0 if not finite.

    Args:
        gradients: Of all weights.
        rho: Length of the step.
    """
    return _scaled(gradients, gradients, rho)


@torch.no_grad()
def adaptive_worst_step(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, eta: float
) -> list[Tensor]:
    """Return `rho * T^2 g / |T g|` with `T = |w| + eta` (Kwon et al. 2021, equation 6, section 4).

    Biases and norm weights have `T = 1`, as the authors do it.

    Args:
        weights: All weights.
        gradients: Theirs.
        rho: Length of the step, in units of the weights.
        eta: Keeps weights near zero movable.
    """
    sizes = [w.abs() + eta if w.ndim >= MATRIX else torch.ones_like(w) for w in weights]
    scaled = [t * g for t, g in zip(sizes, gradients, strict=True)]
    return _scaled([t * s for t, s in zip(sizes, scaled, strict=True)], scaled, rho)


def _scaled(steps: Iterable[Tensor], measured: Sequence[Tensor], rho: float) -> list[Tensor]:
    norm = total_norm(measured)
    sound = norm.isfinite() & (norm > 0)
    return [torch.where(sound, step * (rho / norm), 0.0) for step in steps]


# --- The components -------------------------------------------------------------------------------


class Sam:
    """Step along the gradient at the point uphill where the loss is worst.

    Twice the work of a step. The second pass runs over the whole window, so accumulation and several
    processes do not change the method; batch norm keeps the statistics of the first pass.

    Args:
        rho: How far uphill; 0 switches it off.
    """

    capabilities = Capabilities(second_forward=True)

    def __init__(self, rho: Annotated[float, Ge(0)] = 0.05) -> None:
        self.rho = rho

    def _steps(self, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG002
        return worst_step(gradients, self.rho)

    @hookimpl(tryfirst=True)
    def sft_gradients(self, run: Run) -> None:
        """Replace the gradients by those uphill; the weights end as they were, bit for bit."""
        if not self.rho:
            return
        weights = [p for p in run.model.parameters() if p.requires_grad and p.grad is not None]
        gradients = [p.grad for p in weights if p.grad is not None]
        before = [p.detach().clone() for p in weights]
        with torch.no_grad():
            for weight, step in zip(weights, self._steps(weights, gradients), strict=True):
                weight.add_(step)
        with frozen_statistics(run.model):
            run.replay_window()
        copy_all_(weights, before)


class Asam(Sam):
    """SAM whose step is measured in units of each weight, so that rescaling a layer changes nothing.

    Args:
        rho: How far uphill, about ten times that of SAM; 0 switches it off.
        eta: Keeps weights near zero movable.
    """

    def __init__(
        self, rho: Annotated[float, Ge(0)] = 0.5, eta: Annotated[float, Ge(0)] = 0.01
    ) -> None:
        super().__init__(rho)
        self.eta = eta

    def _steps(self, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        return adaptive_worst_step(weights, gradients, self.rho, self.eta)
