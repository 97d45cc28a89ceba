"""Changes of the weights before the first step: noise (NoisyTune), new top layers (re-init)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from sft_engine import RecipeError, hookimpl, order

if TYPE_CHECKING:
    from sft_engine import Run


# --- The methods themselves, for any loop ---------------------------------------------------------


@torch.no_grad()
def add_relative_noise_(weight: Tensor, strength: float, generator: torch.Generator) -> None:
    """Add uniform noise of up to half of `strength` times the weight's standard deviation, in place.

    Wu et al. 2022, "NoisyTune", equation 1: `w + U(-strength / 2, strength / 2) * std(w)`.
    """
    draws = torch.rand(weight.shape, generator=generator).to(weight)
    weight.add_((draws - 0.5) * strength * weight.std())


@torch.no_grad()
def renew_(module: nn.Module, deviation: float, generator: torch.Generator) -> None:
    """Draw a module's own weights anew, in place: matrices from N(0, deviation), norms 1, biases 0."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            draws = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draws.to(parameter) * deviation)


# --- The components -------------------------------------------------------------------------------


class _Once:
    """Does its work at the beginning of a run, and not again when the run is resumed."""

    def __init__(self) -> None:
        self.done = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether it was done."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""
        self.done = state["done"]


class NoisyTune(_Once):
    """Add a little noise to the pretrained weights, in proportion to the spread of each.

    Args:
        strength: Width of the noise, in standard deviations of each weight matrix or vector.
    """

    def __init__(self, strength: Annotated[float, Ge(0)] = 0.15) -> None:
        super().__init__()
        self.strength = strength

    @hookimpl(tryfirst=True)
    def sft_setup(self, run: Run) -> None:
        """Add the noise to all but the head, before anything takes the weights for the start."""
        head = set(run.layer_groups[-1].parameters)
        if self.done or not self.strength:
            return
        for name, weight in run.model.named_parameters():
            if name not in head and weight.numel() > 1:
                add_relative_noise_(weight, self.strength, _generator(run, "noisy-tune", name))
        self.done = True


class ReInit(_Once):
    """Draw the top layers of the backbone anew: what they knew of pretraining may not help.

    Zhang et al. 2020, "Revisiting Few-sample BERT Fine-tuning", section 4.2.

    Args:
        layers: How many layer groups below the head.
        deviation: Standard deviation of the new weights.
    """

    def __init__(
        self, layers: Annotated[int, Ge(0)] = 1, deviation: Annotated[float, Ge(0)] = 0.02
    ) -> None:
        super().__init__()
        self.layers, self.deviation = layers, deviation

    @hookimpl(tryfirst=True)
    def sft_setup(self, run: Run) -> None:
        """Draw the layers, before anything takes the weights for the start."""
        below = run.layer_groups[:-1]
        if self.layers > len(below):
            raise RecipeError(
                f"`layers` of re-init: found {self.layers}, {type(run.model).__name__} has {len(below)} "
                f"layer groups below the head: {', '.join(group.name for group in below)}"
            )
        if self.done or not self.layers:
            return
        chosen = {name for group in below[-self.layers :] for name in group.parameters}
        for path, module in run.model.named_modules():
            own = {f"{path}.{n}" for n, _ in module.named_parameters(recurse=False)}
            if own & chosen:
                renew_(module, self.deviation, _generator(run, "re-init", path))
        self.done = True


def _generator(run: Run, who: str, name: str) -> torch.Generator:
    key = order.mix(run.seeds.init, order.name_key(who), order.name_key(name))
    return torch.Generator().manual_seed(key & (2**63 - 1))
