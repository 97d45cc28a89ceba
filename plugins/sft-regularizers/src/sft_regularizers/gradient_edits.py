"""Changes of a finished gradient: Child-Tuning masks it, noise is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from sft_engine import hookimpl
from sft_regularizers.fisher import fisher_of_split
from sft_regularizers.selection import beside

if TYPE_CHECKING:
    from sft_engine import Run


# --- The methods themselves, for any loop ---------------------------------------------------------


def task_free_mask(like: Tensor, p: float) -> Tensor:
    """Return a mask of 1 / p with probability p, else 0: its mean is 1 (Xu et al. 2021, algorithm 1).

    Args:
        like: Gives shape, device and type; draws come from torch's own generator.
        p: Probability of a weight to be in the child network.
    """
    return torch.empty_like(like).bernoulli_(p).div_(p)


def task_driven_masks(importance: Mapping[str, Tensor], p: float) -> dict[str, Tensor]:
    """Return masks of 1 for the share p of weights that matter most, over all of them (equation 4).

    Args:
        importance: Such as Fisher information, by name of the weight.
        p: Share of the weights that are in the child network.
    """
    flat = torch.cat([each.flatten() for each in importance.values()])
    number = max(1, round(p * flat.numel()))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(number).indices] = True  # exactly so many, where values are equal too
    parts = torch.split(chosen, [each.numel() for each in importance.values()])
    return {
        name: part.view(importance[name].shape)
        for name, part in zip(importance, parts, strict=True)
    }


def annealed_deviation(eta: float, gamma: float, step: int) -> float:
    """Return the standard deviation of the noise of a step, `sqrt(eta / (1 + step)^gamma)`.

    Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep Networks", equation 1.
    """
    return float((eta / (1 + step) ** gamma) ** 0.5)


# --- The components -------------------------------------------------------------------------------


class ChildTuning:
    """Let only a part of the backbone's weights, the child network, have a gradient.

    The mask works before the optimizer's moments. The head always has its gradient.

    Args:
        mode: `F`, task-free: another random part in every step. `D`, task-driven: the part with the
            largest Fisher information at the start, for the whole run.
        p: Share of the weights in the child network; the authors take 0.2 to 0.4 for F, 0.1 to 0.3 for D.
        examples: From which D estimates the information, before training.
    """

    def __init__(
        self,
        mode: Literal["F", "D"] = "D",
        p: Annotated[float, Gt(0), Le(1)] = 0.3,
        examples: Annotated[int, Gt(0)] = 256,
    ) -> None:
        self.mode, self.p, self.examples = mode, p, examples
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._masks: dict[str, Tensor] = {}

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Find the weights and, for D, the child network, unless a checkpoint holds it."""
        head = set(run.layer_groups[-1].parameters)
        self._weights = {n: p for n, p in run.model.named_parameters() if n not in head}
        if self.mode == "D" and self.p < 1 and not self._masks:
            importance = fisher_of_split(run, self._weights, "train", self.examples)
            self._masks = task_driven_masks(importance, self.p)
        self._masks = beside(self._masks, self._weights)

    @hookimpl(trylast=True)
    def sft_gradients(self, run: Run) -> None:  # noqa: ARG002
        """Mask the gradients; after what computes them anew."""
        if self.p == 1:
            return
        for name, weight in self._weights.items():
            if weight.grad is not None:
                mask = self._masks.get(name)
                weight.grad.mul_(task_free_mask(weight.grad, self.p) if mask is None else mask)

    def state_dict(self) -> dict[str, Any]:
        """Return the child network of D."""
        return {"masks": self._masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._masks = beside(state["masks"], self._weights or state["masks"])


class GradientNoise:
    """Add Gaussian noise to the gradient, less and less of it.

    Args:
        eta: Variance in the first step; the authors take 0.01, 0.3 or 1.
        gamma: The variance falls with the step to the power of minus this.
    """

    def __init__(
        self, eta: Annotated[float, Ge(0)] = 0.01, gamma: Annotated[float, Ge(0)] = 0.55
    ) -> None:
        self.eta, self.gamma = eta, gamma

    @hookimpl(trylast=True)
    def sft_gradients(self, run: Run) -> None:
        """Add the noise, the same on all ranks; after what computes gradients anew."""
        if not self.eta:
            return
        deviation = annealed_deviation(self.eta, self.gamma, run.clock.step)
        for parameter in run.model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter.grad.add_(torch.randn_like(parameter.grad), alpha=deviation)
