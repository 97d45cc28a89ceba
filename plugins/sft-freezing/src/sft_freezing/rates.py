"""Learning rates that differ with depth: layer-wise decay, and the slices of fast.ai."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le

from sft_engine import RecipeError, hookimpl
from sft_freezing.layers import listed

if TYPE_CHECKING:
    from sft_engine import Run
    from sft_engine.flow import ParameterGroup


def decayed(groups: int, decay: float, least: float = 0.0) -> list[float]:
    """Return the factor on the learning rate of each layer group, input first.

    `decay ** (distance to the head)`: 2.6 times less for each group down in ULMFiT (Howard, Ruder
    2018, section 3.2), 0.95 for BERT (Zhang et al. 2020), 0.65 to 0.75 for ViT (Bao et al. 2021).

    Args:
        groups: Number of layer groups.
        decay: Factor from one group to the one below it.
        least: No factor is below this one.
    """
    return [max(least, decay**distance) for distance in reversed(range(groups))]


def spread(groups: int, lowest: float, shape: Literal["even", "body"] = "even") -> list[float]:
    """Return factors from `lowest` for the layer group at the input to 1 for the head.

    Howard, Gugger 2020 (fastai): `even` is `slice(low, high)`, equal ratios from group to group; `body` is
    `slice(high)`, `lowest` for all groups but the head.
    """
    if groups == 1:
        return [1.0]
    if shape == "body":
        return [lowest] * (groups - 1) + [1.0]
    return [lowest ** (distance / (groups - 1)) for distance in reversed(range(groups))]


def scale_rates(groups: Sequence[ParameterGroup], factors: Sequence[float]) -> None:
    """Multiply the scale of each parameter group by the factor of its layer group."""
    for group in groups:
        group.lr_scale *= factors[group.layer_group]


class LayerDecay:
    """Let learning rates fall from layer group to layer group, from the head down.

    Args:
        decay: Factor from one layer group to the one below it; ULMFiT's 1 / 2.6 is 0.385.
        head: Factor on the learning rate of the head alone; a new head may want 10.
        least: No layer group below the head has a factor under this one.
    """

    def __init__(
        self,
        decay: Annotated[float, Gt(0), Le(1)] = 0.95,
        head: Annotated[float, Gt(0)] = 1.0,
        least: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        self.decay, self.head, self.least = decay, head, least

    @hookimpl
    def sft_param_groups(self, run: Run, groups: list[ParameterGroup]) -> None:
        """Scale the learning rates."""
        factors = decayed(len(run.layer_groups), self.decay, self.least)
        factors[-1] *= self.head
        scale_rates(groups, factors)


class Discriminative:
    """Spread learning rates over the layer groups, from a low one at the input to that of the optimizer.

    Args:
        lowest: Factor on the learning rate of the layer group at the input.
        shape: `even` has equal ratios from group to group; `body` gives `lowest` to all but the head.
        head: Factor on the learning rate of the head alone.
        factors: The factor of each layer group instead, input first.
    """

    def __init__(
        self,
        lowest: Annotated[float, Gt(0), Le(1)] = 0.1,
        shape: Literal["even", "body"] = "even",
        head: Annotated[float, Gt(0)] = 1.0,
        factors: tuple[Annotated[float, Ge(0)], ...] = (),
    ) -> None:
        self.lowest, self.head, self.factors = lowest, head, tuple(factors)
        self.shape: Literal["even", "body"] = shape

    @hookimpl
    def sft_param_groups(self, run: Run, groups: list[ParameterGroup]) -> None:
        """Scale the learning rates.

        Raises:
            RecipeError: there are not as many factors as layer groups.
        """
        number = len(run.layer_groups)
        if self.factors and len(self.factors) != number:
            raise RecipeError(
                f"`factors` of discriminative: found {len(self.factors)}, and the model has {number} layer "
                f"groups: {listed(run.layer_groups)}; give one for each, input first"
            )
        factors = list(self.factors) or spread(number, self.lowest, self.shape)
        factors[-1] *= self.head
        scale_rates(groups, factors)
