"""Mixout: every forward pass in training takes some columns of each weight from the start."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional

from sft_engine import RecipeError, hookimpl, order
from sft_regularizers.selection import beside, matching, snapshot

if TYPE_CHECKING:
    from sft_engine import Run


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.factor, None


def mixed(
    weight: Tensor, start: Tensor, keep: Tensor, p: float, *, scale_gradient: bool = True
) -> Tensor:
    """Return `((1 - M) * start + M * weight - p * start) / (1 - p)`, whose mean over masks is the weight.

    Lee, Cho, Kang 2019, equation 5 and section 3; with `start = 0` it is inverted dropout.

    Args:
        weight: (outputs, inputs).
        start: What the weight was before training, the same shape.
        keep: Mask M, 1 where the weight itself is taken; broadcast, such as (inputs,).
        p: Probability of taking the start.
        scale_gradient: Whether the gradient is divided by `1 - p`, as the formula says; the authors' code
            does not.
    """
    if p == 0:
        return weight
    if not scale_gradient:
        weight = _ScaleGradient.apply(weight, 1 - p)
    return (torch.where(keep.bool(), weight, start) - p * start) / (1 - p)


class Mixout:
    """Replace random input neurons of the linear layers by what they were before training.

    A mask drops whole input neurons, is the same for all micro-batches of a window, and another one in
    each forward pass of a micro-batch. Evaluation uses the weights as they are.

    Args:
        p: Probability of taking the start; the authors take 0.7 to 0.9.
        scale_gradient: Whether the gradient is divided by `1 - p`, as the formula says; the authors' code
            leaves it out.
        only: Shell patterns of layer groups or parameters; empty for all linear layers but the head's.
    """

    def __init__(
        self,
        p: Annotated[float, Ge(0), Lt(1)] = 0.7,
        scale_gradient: bool = True,  # noqa: FBT001, FBT002  an option of a recipe
        only: tuple[str, ...] = (),
    ) -> None:
        self.p, self.scale_gradient, self.only = p, scale_gradient, tuple(only)
        self._layers: dict[str, nn.Linear] = {}
        self._start: dict[str, Tensor] = {}
        self._masks: dict[str, Tensor] = {}
        self._key: tuple[int, ...] = (0, 0)
        self._pass = 0

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Find the layers, remember their start, and let their forward pass mix."""
        if not self.p:
            return
        names = self._names(run)
        self._layers = {
            f"{name}.weight": module
            for name, module in run.model.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.weight" in names
        }
        if not self._layers:
            raise RecipeError(
                f"mixout changes linear layers, and {type(run.model).__name__} has none "
                f"{'that match `only`' if self.only else 'below the head'}: leave mixout out"
            )
        weights = {name: layer.weight for name, layer in self._layers.items()}
        self._start = beside(self._start or snapshot(weights), weights)
        for name, layer in self._layers.items():
            # Not `parametrize`: it renames the weights, and what is saved could not be read elsewhere.
            layer.forward = functools.partial(self._linear, layer, name)  # type: ignore[method-assign]
        run.model.register_forward_pre_hook(self._next_pass)

    def _names(self, run: Run) -> set[str]:
        if self.only:
            return matching(run.layer_groups, self.only, "only of mixout")
        return {name for group in run.layer_groups[:-1] for name in group.parameters}

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run: Run) -> Iterator[None]:
        """Begin a micro-batch: its passes are counted from zero."""
        self._key = (run.seeds.noise, run.clock.step)
        self._pass = 0
        yield

    def _next_pass(self, _model: nn.Module, _inputs: Any) -> None:
        # Counted at the model, not at the layer: checkpointed layers run twice in one pass.
        self._pass += 1
        self._masks = {}

    def _linear(self, layer: nn.Linear, name: str, inputs: Tensor) -> Tensor:
        """Stand for the layer's own forward; a copy of the model brings a copy of the layer."""
        weight = layer.weight
        if layer.training:
            keep = self._mask(name, weight)
            weight = mixed(
                weight, self._start[name], keep, self.p, scale_gradient=self.scale_gradient
            )
        return functional.linear(inputs, weight, layer.bias)

    def _mask(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._masks:
            draws = order.generator(*self._key, self._pass, order.name_key(name))
            keep = torch.from_numpy(draws.random(weight.shape[1]) >= self.p)
            self._masks[name] = keep.to(weight.device)
        return self._masks[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the start: a resumed run must not take its own weights for it."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the start back."""
        own = {name: layer.weight for name, layer in self._layers.items()}
        self._start = beside(state["start"], own or state["start"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Mixout:
        """Return itself: copies of the model are for evaluation, and share what they do not change."""
        return self
