"""Optimizers as components: the usual ones by themselves, all others of torch and timm by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt

from sft_engine.builtin.optimizer_classes import (
    Groups,
    Implementation,
    build_optimizer,
    check_options,
    need_timm,
    timm_class,
    timm_defaults,
    torch_class,
)
from sft_engine.errors import RecipeError

if TYPE_CHECKING:
    import torch

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]

# --- From torch -----------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        lr: Learning rate.
        betas: Decay of the running averages of the gradient and of its square.
        eps: Added to the denominator.
        weight_decay: Share of each weight that is taken off, times `lr`, in every step.
        amsgrad: Divide by the largest second moment so far.
        implementation: `auto` is fused, else foreach, as class and device allow.
    """

    lr: Positive = 5e-5
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    amsgrad: bool = False
    implementation: Implementation = "auto"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        return build_optimizer(torch_class("AdamW"), groups, **vars(self))


@dataclass(eq=False, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015); its weight decay is added to the gradient, unlike AdamW's.

    Args:
        lr: Learning rate.
        betas: Decay of the running averages of the gradient and of its square.
        eps: Added to the denominator.
        weight_decay: L2 penalty.
        amsgrad: Divide by the largest second moment so far.
        implementation: `auto` is fused, else foreach, as class and device allow.
    """

    lr: Positive = 5e-5
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    amsgrad: bool = False
    implementation: Implementation = "auto"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        return build_optimizer(torch_class("Adam"), groups, **vars(self))


@dataclass(eq=False, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Args:
        lr: Learning rate.
        momentum: Share of the last step that is kept.
        nesterov: Look ahead along the momentum; needs momentum above 0.
        weight_decay: L2 penalty.
        implementation: `auto` is fused, else foreach, as class and device allow.
    """

    lr: Positive = 1e-3
    momentum: Decay = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("`nesterov` looks ahead along the momentum: set `momentum = 0.9`")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        return build_optimizer(torch_class("SGD"), groups, **vars(self))


@dataclass(eq=False, kw_only=True)
class RmsProp:
    """RMSprop (Hinton 2012): steps divided by a running root mean square of the gradient.

    Args:
        lr: Learning rate.
        alpha: Decay of the running average of the squared gradient.
        eps: Added to the denominator.
        momentum: Share of the last step that is kept.
        centered: Subtract the running mean of the gradient.
        weight_decay: L2 penalty.
        implementation: `auto` is foreach; there is no fused one.
    """

    lr: Positive = 1e-4
    alpha: Decay = 0.99
    eps: Positive = 1e-8
    momentum: Decay = 0.0
    centered: bool = False
    weight_decay: NotNegative = 0.0
    implementation: Implementation = "auto"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        return build_optimizer(torch_class("RMSprop"), groups, **vars(self))


@dataclass(eq=False, kw_only=True)
class Adafactor:
    """Adafactor (Shazeer and Stern 2018): second moments of matrices kept as rows and columns.

    The step is scaled by the size of the weights: `lr` is relative, and at most 1 / sqrt(step).

    Args:
        lr: Relative learning rate.
        beta2_decay: Exponent of the decay of the second moment.
        clip: Largest root mean square of an update; `d` in torch and in the paper.
        weight_decay: Decoupled weight decay.
        implementation: `auto` is foreach; there is no fused one.
    """

    lr: Positive = 1e-3
    beta2_decay: Annotated[float, Lt(0)] = -0.8
    clip: Annotated[float, Ge(1)] = 1.0
    weight_decay: NotNegative = 0.0
    implementation: Implementation = "auto"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        options = {"d" if name == "clip" else name: value for name, value in vars(self).items()}
        return build_optimizer(torch_class("Adafactor"), groups, **options)


@dataclass(eq=False, kw_only=True)
class Torch:
    """Any optimizer of `torch.optim`, by the name of its class.

    Args:
        name: Class name, such as `RAdam` or `NAdam`.
        lr: Learning rate.
        weight_decay: As the class understands it.
        options: Further arguments of the class.
        implementation: `auto` is fused, else foreach, as class and device allow.
    """

    name: str
    lr: Positive = 5e-5
    weight_decay: NotNegative = 0.0
    options: dict[str, Any] | None = None
    implementation: Implementation = "auto"

    def check(self) -> None:
        """Raise RecipeError for an unknown name or option; builds nothing."""
        self._arguments()

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        arguments = self._arguments()
        return build_optimizer(
            torch_class(self.name), groups, implementation=self.implementation, **arguments
        )

    def _arguments(self) -> dict[str, Any]:
        cls = torch_class(self.name)
        decay = {"weight_decay": self.weight_decay}
        if "weight_decay" not in inspect.signature(cls).parameters:
            if self.weight_decay:
                raise RecipeError(
                    f"`optimizer.weight_decay`: found {self.weight_decay}, and {self.name} has no "
                    "weight decay; leave the key out"
                )
            decay = {}
        return {"lr": self.lr, **decay, **check_options(cls, self.options or {})}


# --- From timm ------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class Lion:
    """Lion (Chen et al. 2023): the sign of an interpolated momentum; from timm.

    Takes a 3 to 10 times smaller learning rate and as much larger weight decay than AdamW.

    Args:
        lr: Learning rate.
        betas: Interpolation for the step, and decay of the momentum.
        weight_decay: Decoupled weight decay.
        implementation: `auto` is foreach; there is no fused one.
    """

    lr: Positive = 1e-5
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: NotNegative = 0.05
    implementation: Implementation = "auto"

    def check(self) -> None:
        """Raise RecipeError if timm is missing."""
        need_timm()

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        return build_optimizer(timm_class("lion"), groups, **vars(self))


@dataclass(eq=False, kw_only=True)
class Lamb:
    """LAMB (You et al. 2020): Adam with steps scaled to the size of each weight; from timm.

    Args:
        lr: Learning rate, relative to the norm of each weight.
        betas: Decay of the running averages of the gradient and of its square.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay, part of the scaled step.
        implementation: `auto` is foreach; there is no fused one.
    """

    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-6
    weight_decay: NotNegative = 0.01
    implementation: Implementation = "auto"

    def check(self) -> None:
        """Raise RecipeError if timm is missing."""
        need_timm()

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        # timm's Lamb would clip the gradient by itself; here `train.clip_norm` alone decides that.
        return build_optimizer(timm_class("lamb"), groups, max_grad_norm=None, **vars(self))


@dataclass(eq=False, kw_only=True)
class Timm:
    """Any optimizer that timm knows, by its name there.

    Args:
        name: Such as `lion`, `adan` or `muon`; `timm.optim.list_optimizers()` lists them.
        lr: Learning rate.
        weight_decay: As the optimizer understands it.
        options: Further arguments of the optimizer; momentum is 0.9 where it has one.
        implementation: `auto` is fused, else foreach, as class and device allow.
    """

    name: str
    lr: Positive = 5e-5
    weight_decay: NotNegative = 0.0
    options: dict[str, Any] | None = None
    implementation: Implementation = "auto"

    def check(self) -> None:
        """Raise RecipeError if timm is missing, or for an unknown name or option."""
        check_options(timm_class(self.name), self.options or {})

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Build the optimizer over groups that carry `params`, `lr` and `weight_decay`."""
        cls = timm_class(self.name)
        options = timm_defaults(self.name) | check_options(cls, self.options or {})
        return build_optimizer(
            cls,
            groups,
            implementation=self.implementation,
            lr=self.lr,
            weight_decay=self.weight_decay,
            **options,
        )
