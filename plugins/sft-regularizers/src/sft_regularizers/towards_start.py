"""Penalties on the distance from the weights that training started with: L2-SP, its Fisher form, EWC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from sft_engine import Capabilities, LossTerm, RecipeError, hookimpl
from sft_regularizers.fisher import fisher_of_split
from sft_regularizers.penalties import half_square_sum
from sft_regularizers.selection import (
    Parameters,
    beside,
    rates,
    snapshot,
    split_head,
    trainable,
)

if TYPE_CHECKING:
    from sft_engine import Run
    from sft_engine.flow import ParameterGroup

# --- The methods themselves, for any loop ---------------------------------------------------------


def half_square_distance(
    weights: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    importance: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return half the sum of squared distances from the start, each times its importance.

    Xuhong, Grandvalet, Davoine 2018 (L2-SP), equations 3 and 4; Kirkpatrick et al. 2017 (EWC), equation 3.
    """
    parts = []
    for name, weight in weights.items():
        squares = (weight - start[name]).square()
        parts.append((squares if importance is None else squares * importance[name]).sum())
    return 0.5 * torch.stack(parts).sum()


@torch.no_grad()
def pull_(weight: Tensor, start: Tensor | float, amount: float) -> None:
    """Move a weight towards its start, in place: the proximal step of `amount / 2 * |w - start|^2`.

    `w <- (w + amount * start) / (1 + amount)`: to first order `w - amount * (w - start)`, but it has the
    same fixed point as the loss term at any learning rate, and never overshoots.
    """
    weight.sub_((weight - start) * (amount / (1 + amount)))


# --- The components -------------------------------------------------------------------------------


class L2SP:
    """Pull the backbone towards its pretrained weights, and the new head towards zero.

    The objective gets `alpha / 2 * |w - w0|^2 + beta / 2 * |v|^2`; whoever writes the first part as
    `lambda * |w - w0|^2` means `alpha = 2 * lambda`. The pretrained weights are part of every checkpoint.

    Args:
        alpha: Strength of the pull of the backbone to where it started.
        beta: Strength of the pull of the head, the last layer group, to zero.
        form: `loss` is a term of the objective; `decoupled` moves the weights after the step, by the
            learning rate times the strength, untouched by Adam's rescaling.
        weight_decay: If the optimizer decays the same weights to zero, `refuse` to train, switch it
            `off` for them, or `keep` both.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self,
        alpha: Annotated[float, Ge(0)] = 0.01,
        beta: Annotated[float, Ge(0)] = 0.01,
        form: Literal["loss", "decoupled"] = "loss",
        weight_decay: Literal["refuse", "off", "keep"] = "refuse",
    ) -> None:
        self.alpha, self.beta, self.form, self.weight_decay = alpha, beta, form, weight_decay
        self._start: dict[str, Tensor] = {}
        self._backbone: Parameters = {}
        self._head: Parameters = {}

    @hookimpl
    def sft_param_groups(self, run: Run, groups: list[ParameterGroup]) -> None:
        """Judge weight decay on the weights that are pulled already."""
        if self.alpha or self.beta:
            settle_weight_decay(run, groups, self.weight_decay, "l2-sp")

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Remember the start, unless a checkpoint holds it."""
        self._backbone, self._head = split_head(run)
        self._start = beside(self._start or snapshot(self._backbone), self._backbone)

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add the distance from the start and the size of the head."""
        if self.form != "loss":
            return
        backbone, head = trainable(self._backbone), trainable(self._head)
        if self.alpha and backbone:
            distance = half_square_distance(backbone, self._start)
            yield LossTerm("l2-sp", distance, self.alpha, per="step")
        if self.beta and head:
            yield LossTerm("l2-sp/head", half_square_sum(head.values()), self.beta, per="step")

    @hookimpl(tryfirst=True)
    def sft_step_end(self, run: Run) -> None:
        """Pull, before anything averages the weights."""
        if self.form != "decoupled":
            return
        if self.alpha:
            for name, lr in rates(run, trainable(self._backbone)):
                pull_(self._backbone[name], self._start[name], lr * self.alpha)
        if self.beta:
            for name, lr in rates(run, trainable(self._head)):
                pull_(self._head[name], 0.0, lr * self.beta)

    def state_dict(self) -> dict[str, Any]:
        """Return the start: a resumed run must not take its own weights for it."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the start back."""
        self._start = beside(state["start"], self._backbone or state["start"])


class L2SPFisher:
    """L2-SP in which a weight is held the more, the more the start's answers depend on it.

    Args:
        alpha: Strength of the pull of the backbone, times the Fisher information of each weight.
        beta: Strength of the pull of the head, the last layer group, to zero.
        split: Whose examples the information is estimated from, with the labels they have.
        examples: How many of them; each costs a forward and a backward pass before training.
        weight_decay: If the optimizer decays the same weights to zero, `refuse` to train, switch it
            `off` for them, or `keep` both.
    """

    def __init__(
        self,
        alpha: Annotated[float, Ge(0)] = 0.01,
        beta: Annotated[float, Ge(0)] = 0.01,
        split: str = "train",
        examples: Annotated[int, Gt(0)] = 256,
        weight_decay: Literal["refuse", "off", "keep"] = "refuse",
    ) -> None:
        self.alpha, self.beta = alpha, beta
        self.split, self.examples, self.weight_decay = split, examples, weight_decay
        self._anchor = Anchor()
        self._head: Parameters = {}

    @hookimpl
    def sft_param_groups(self, run: Run, groups: list[ParameterGroup]) -> None:
        """Judge weight decay on the weights that are pulled already."""
        if self.alpha or self.beta:
            settle_weight_decay(run, groups, self.weight_decay, "l2-sp-fisher")

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Remember the start and estimate the information, unless a checkpoint holds them."""
        backbone, self._head = split_head(run)
        self._anchor.attach(run, backbone, self.split, self.examples if self.alpha else 0)

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add the weighted distance and the size of the head."""
        yield from self._anchor.terms("l2-sp-fisher", self.alpha)
        head = trainable(self._head)
        if self.beta and head:
            value = half_square_sum(head.values())
            yield LossTerm("l2-sp-fisher/head", value, self.beta, per="step")

    def state_dict(self) -> dict[str, Any]:
        """Return start and information."""
        return self._anchor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._anchor.load_state_dict(state)


class EWC:
    """Elastic weight consolidation: hold every weight that the start's answers depend on, head included.

    For going on with a model whose head is already trained.

    Args:
        strength: Factor of half the squared distances, each times the Fisher information of the weight.
        split: Whose examples the information is estimated from, with the labels they have.
        examples: How many of them; each costs a forward and a backward pass before training.
    """

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 100.0,
        split: str = "train",
        examples: Annotated[int, Gt(0)] = 256,
    ) -> None:
        self.strength, self.split, self.examples = strength, split, examples
        self._anchor = Anchor()

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Remember the start and estimate the information, unless a checkpoint holds them."""
        everything = dict(run.model.named_parameters())
        self._anchor.attach(run, everything, self.split, self.examples if self.strength else 0)

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add the weighted distance."""
        yield from self._anchor.terms("ewc", self.strength)

    def state_dict(self) -> dict[str, Any]:
        """Return start and information."""
        return self._anchor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._anchor.load_state_dict(state)


# --- What they share ------------------------------------------------------------------------------


class Anchor:
    """The start of some weights, and how much its answers depend on each of them."""

    def __init__(self) -> None:
        self.weights: Parameters = {}
        self.start: dict[str, Tensor] = {}
        self.fisher: dict[str, Tensor] = {}

    def attach(self, run: Run, weights: Parameters, split: str, examples: int) -> None:
        """Take the start and the information, unless they were loaded; no examples, nothing to do."""
        self.weights = weights
        if examples and not self.start:
            self.start = snapshot(weights)
            self.fisher = fisher_of_split(run, weights, split, examples)
        self.start, self.fisher = beside(self.start, weights), beside(self.fisher, weights)

    def terms(self, name: str, strength: float) -> Iterator[LossTerm]:
        """Yield the penalty, if there is any."""
        weights = trainable(self.weights)
        if strength and weights:
            value = half_square_distance(weights, self.start, self.fisher)
            yield LossTerm(name, value, strength, per="step")

    def state_dict(self) -> dict[str, Any]:
        """Return start and information."""
        return {"start": self.start, "fisher": self.fisher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.start, self.fisher = (
            beside(state[key], self.weights or state[key]) for key in ("start", "fisher")
        )


def settle_weight_decay(
    run: Run, groups: list[ParameterGroup], wish: Literal["refuse", "off", "keep"], who: str
) -> None:
    """Decide what becomes of the optimizer's weight decay on weights that are pulled elsewhere.

    Raises:
        RecipeError: the wish is to refuse, and there is weight decay.
    """
    own = next(a.component for a in run.active if a.planned.kind == "optimizer").weight_decay
    decayed = [g for g in groups if (own if g.weight_decay is None else g.weight_decay)]
    if wish == "keep" or not decayed:
        return
    if wish == "refuse":
        raise RecipeError(
            f"`optimizer.weight_decay`: found {own:g}, which pulls to zero the weights that {who} pulls "
            "elsewhere: set it to 0, or `weight_decay` of "
            f'{who} to "off" (no decay where it pulls) or "keep" (both)'
        )
    for group in decayed:
        group.weight_decay = 0.0
