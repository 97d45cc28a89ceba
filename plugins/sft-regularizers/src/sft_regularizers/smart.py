"""SMART: answers shall not change within a small ball, nor from one step to the next."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from sft_engine import Capabilities, LossTerm, hookimpl, logits_of
from sft_regularizers.answers import (
    frozen_statistics,
    logits_again,
    sum_over_items,
    symmetric_kl,
)
from sft_regularizers.averages import move_average_, tensors_of
from sft_regularizers.embeddings import changed, example_noise, input_embeddings, kept
from sft_regularizers.selection import beside

if TYPE_CHECKING:
    from sft_engine import Batch, Run

TINY = 1e-12


def ascend_in_box(delta: Tensor, gradient: Tensor, step_size: float, epsilon: float) -> Tensor:
    """Take a step of projected ascent in the largest-coordinate ball (Jiang et al. 2019, algorithm 1).

    Args:
        delta: (n, length, width).
        gradient: Of what is maximized, the same shape; scaled to largest coordinate 1 an example.
        step_size: Of the step.
        epsilon: Radius of the ball.
    """
    largest = gradient.abs().flatten(1).amax(dim=1).clamp(min=TINY)
    direction = gradient / largest.view(-1, *[1] * (gradient.ndim - 1))
    return (delta + step_size * direction).clamp(-epsilon, epsilon).detach()


class Smart:
    """Smoothness-inducing regularization and Bregman proximal steps, for small data.

    Args:
        strength: Factor of the distance to the answer at the worst point near the embedded input.
        epsilon: Radius of the ball in which the worst point is looked for, by the largest coordinate.
        sigma: Standard deviation of the noise at which the search begins.
        steps: Of the search; each costs a forward and a backward pass.
        step_size: Of a step of the search.
        proximity: Factor of the distance to the answer of the averaged weights; 0 keeps no average.
        decay: Of that average, in the last nine tenths of the run; 0.99 in the first.
    """

    capabilities = Capabilities(second_forward=True)

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 1.0,
        epsilon: Annotated[float, Ge(0)] = 1e-5,
        sigma: Annotated[float, Ge(0)] = 1e-5,
        steps: Annotated[int, Ge(0)] = 1,
        step_size: Annotated[float, Ge(0)] = 1e-3,
        proximity: Annotated[float, Ge(0)] = 0.0,
        decay: Annotated[float, Ge(0), Lt(1)] = 0.999,
    ) -> None:
        self.strength, self.epsilon, self.sigma = strength, epsilon, sigma
        self.steps, self.step_size = steps, step_size
        self.proximity, self.decay = proximity, decay
        self._embeddings: nn.Module = nn.Module()
        self._average: nn.Module | None = None
        self._loaded: dict[str, Tensor] = {}

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Find the embeddings; begin the average, or go on with that of the checkpoint."""
        self._embeddings = input_embeddings(run.model, "smart")
        if self.proximity:
            self._average = copy.deepcopy(run.model).requires_grad_(False).eval()  # noqa: FBT003
            self._load()

    @hookimpl
    def sft_loss_terms(self, run: Run, batch: Batch, outputs: Any) -> Iterator[LossTerm]:
        """Add the distance to the worst answer nearby and to that of the average."""
        kind, logits = run.task.head.kind, logits_of(outputs)
        if self.strength and self.epsilon:
            worst = self._worst(run, batch, logits.detach())
            with changed(self._embeddings, lambda embedded: embedded + worst.to(embedded.dtype)):
                again = self._again(run, batch)
            apart = symmetric_kl(again, logits, kind)
            yield LossTerm("smart", sum_over_items(apart, batch), self.strength)
        if self._average is not None:
            with torch.no_grad():
                before = logits_of(run.backbone.forward(self._average, batch.inputs))
            apart = symmetric_kl(logits, before, kind)
            yield LossTerm("smart/proximity", sum_over_items(apart, batch), self.proximity)

    def _worst(self, run: Run, batch: Batch, logits: Tensor) -> Tensor:
        """Return the change of the embeddings in the ball that moves the answer most."""
        delta = torch.empty(0)

        def add(embedded: Tensor) -> Tensor:
            nonlocal delta
            if delta.shape != embedded.shape:
                draws = example_noise(run, batch, "smart", embedded.shape[1:], "normal")
                start = self.sigma * draws.to(embedded.dtype)
                mask = kept(run, batch, self._embeddings, embedded)
                delta = start.clamp(-self.epsilon, self.epsilon) * mask
            return embedded.detach() + delta.requires_grad_()

        with changed(self._embeddings, add):
            for _ in range(self.steps):
                apart = symmetric_kl(self._again(run, batch), logits, run.task.head.kind)
                (gradient,) = torch.autograd.grad(apart.sum(), delta)
                delta = ascend_in_box(delta, gradient, self.step_size, self.epsilon)
            if not self.steps:
                with torch.no_grad():
                    self._again(run, batch)
        return delta.detach()

    def _again(self, run: Run, batch: Batch) -> Tensor:
        with frozen_statistics(run.model):
            return logits_again(run, batch)

    @hookimpl(trylast=True)
    @torch.no_grad()
    def sft_step_end(self, run: Run) -> None:
        """Move the average."""
        if self._average is None:
            return
        decay = self.decay if run.clock.progress > 0.1 else min(self.decay, 0.99)  # noqa: PLR2004
        move_average_(tensors_of(self._average), tensors_of(run.model), decay)

    def _load(self) -> None:
        if self._average is not None and self._loaded:
            own = self._average.state_dict()
            self._average.load_state_dict(beside(self._loaded, own))

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": {} if self._average is None else self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._loaded = dict(state["average"])
        self._load()
