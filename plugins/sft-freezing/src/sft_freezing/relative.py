"""Auto-RGN: learning rates by how large gradients are beside the weights that they change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from sft_engine import Capabilities, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Run
    from sft_engine.flow import ParameterGroup


def relative_norm(gradients: Iterable[Tensor | None], weights: Iterable[Tensor]) -> float:
    """Return the norm of some gradients divided by the norm of their weights; infinity if that is 0."""
    of_gradients = math.hypot(*(_norm(each) for each in gradients if each is not None))
    of_weights = math.hypot(*map(_norm, weights))
    return of_gradients / of_weights if of_weights else math.inf


def rates_from(norms: Mapping[str, float], power: float = 1.0) -> dict[str, float]:
    """Return factors on learning rates: relative norms divided by the largest of them.

    Lee et al. 2022 (surgical fine-tuning), section 4 (Auto-RGN). Weights of zeros, such as the biases of a
    new head, have an infinite relative norm: their factor is 1, and they are not the largest.

    Args:
        norms: Relative gradient norm by name.
        power: Of the factor; 0 makes all of them 1.
    """
    finite = [norm for norm in norms.values() if math.isfinite(norm)]
    largest = max(finite, default=0.0) or 1.0
    return {
        name: (norm / largest) ** power if math.isfinite(norm) else 1.0
        for name, norm in norms.items()
    }


def _norm(tensor: Tensor) -> float:
    norm: Any = (
        tensor.detach().float().norm() if tensor.itemsize < SINGLE else tensor.detach().norm()
    )
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded weights
    return float(whole.item())


SINGLE = 4
"""Bytes of a float32: norms of shorter numbers are computed in it."""


class AutoRGN:
    """Give most of the learning rate to weights whose gradient is large beside them.

    Lee et al. 2022 (surgical fine-tuning). Measured in the first window of each epoch, and where what trains has
    changed; used from that step on.

    Args:
        per: Have a rate for each `tensor`, or for each layer `group`.
        power: Of the factor; 0 leaves all rates as they are.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self,
        per: Literal["tensor", "group"] = "tensor",
        power: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        self.per, self.power = per, power
        self._factors: dict[str, float] = {}
        self._measured: list[str] = []

    @hookimpl
    def sft_param_groups(self, run: Run, groups: list[ParameterGroup]) -> None:
        """Keep apart what has a rate of its own."""
        for group in list(groups):
            for name in group.names[1:] if self.per == "tensor" else []:
                tags = {*group.tags, f"tensor-{name}"}
                groups.append(replace(group, names=[name], tags=tags))
            if self.per == "tensor":
                del group.names[1:]
            own = (
                group.names[0] if self.per == "tensor" else run.layer_groups[group.layer_group].name
            )
            group.tags.add(f"{self.per}-{own}")

    @hookimpl
    def sft_gradients(self, run: Run) -> None:
        """Multiply the rates that the schedule has set for this step."""
        training = [name for name, p in run.model.named_parameters() if p.requires_grad]
        if not run.clock.window or training != self._measured:
            self._measured = training
            self._factors = rates_from(self._norms(run), self.power)
        groups = zip(run.optimizer.param_groups, run.parameter_groups, strict=True)
        for group, of_recipe in groups:
            group["lr"] *= self._factors.get(self._unit(run, of_recipe.names[0]), 1.0)

    def _norms(self, run: Run) -> dict[str, float]:
        units: dict[str, list[Tensor]] = {}
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad:
                units.setdefault(self._unit(run, name), []).append(parameter)
        return {unit: relative_norm((p.grad for p in ps), ps) for unit, ps in units.items()}

    def _unit(self, run: Run, name: str) -> str:
        return name if self.per == "tensor" else run.layer_groups[run.group_of(name)].name

    def state_dict(self) -> dict[str, Any]:
        """Return the factors of the current epoch, and what they were measured on."""
        return {"factors": self._factors, "measured": self._measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._factors, self._measured = dict(state["factors"]), list(state["measured"])
