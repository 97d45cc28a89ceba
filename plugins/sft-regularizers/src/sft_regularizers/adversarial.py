"""Adversarial training of the embeddings: FreeLB at each micro-batch, FGM once a window."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from sft_engine import Capabilities, hookimpl
from sft_regularizers.answers import frozen_statistics
from sft_regularizers.embeddings import changed, example_noise, input_embeddings, kept
from sft_regularizers.replays import copy_all_, put_aside, total_norm

if TYPE_CHECKING:
    from sft_engine import Batch, Run

TINY = 1e-12


def ascend_in_ball(delta: Tensor, gradient: Tensor, step_size: float, radius: float) -> Tensor:
    """Take a step of ascent of a given length, and project on a ball (Zhu et al. 2019, algorithm 1).

    Args:
        delta: (n, ...): one perturbation an example.
        gradient: Of the loss, the same shape; scaled to length 1 an example.
        step_size: Length of the step.
        radius: Of the ball; 0 for none.
    """
    moved = delta + step_size * _unit(gradient)
    if radius:
        length = moved.flatten(1).norm(dim=1).clamp(min=TINY)
        moved = moved * _as_factor((radius / length).clamp(max=1.0), moved)
    return moved.detach()


def _unit(each: Tensor) -> Tensor:
    length = each.flatten(1).norm(dim=1).clamp(min=TINY)
    return each / _as_factor(length, each)


def _as_factor(each: Tensor, like: Tensor) -> Tensor:
    return each.view(-1, *[1] * (like.ndim - 1))


class FreeLB:
    """Train on the mean over the points of an ascent in embedding space.

    The dropout masks of a micro-batch are the same at all points. The loss in the record is that of the
    first point.

    Args:
        steps: Points of the ascent; each costs a forward and a backward pass. 1 is noise alone.
        step_size: Length of a step; the authors take 0.03 to 0.2.
        initial: Size of the noise that the ascent begins with, over the square root of the number of
            coordinates.
        radius: Of the ball around the input that is not left; 0 for none.
    """

    capabilities = Capabilities(second_forward=True)

    def __init__(
        self,
        steps: Annotated[int, Ge(1)] = 3,
        step_size: Annotated[float, Ge(0)] = 0.1,
        initial: Annotated[float, Ge(0)] = 0.1,
        radius: Annotated[float, Ge(0)] = 0.6,
    ) -> None:
        self.steps, self.step_size = steps, step_size
        self.initial, self.radius = initial, radius
        self._embeddings: nn.Module = nn.Module()
        self._delta: Tensor | None = None

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the embeddings."""
        self._embeddings = input_embeddings(run.model, "freelb")

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run: Run, batch: Batch) -> Iterator[None]:
        """Run the inner step at every point; the gradients add up."""
        self._delta = None
        noise = generator_states(run.device)
        with changed(self._embeddings, lambda embedded: self._moved(run, batch, embedded)):
            yield
            for _ in range(self.steps - 1):
                self._ascend()
                set_generator_states(run.device, noise)
                with frozen_statistics(run.model):
                    inner_step_again(run, batch)
        self._delta = None

    def _moved(self, run: Run, batch: Batch, embedded: Tensor) -> Tensor:
        if self._delta is None:
            self._delta = self._start(run, batch, embedded).requires_grad_()
        return embedded + self._delta if self._delta.shape == embedded.shape else embedded

    def _start(self, run: Run, batch: Batch, embedded: Tensor) -> Tensor:
        mask = kept(run, batch, self._embeddings, embedded.detach())
        draws = example_noise(run, batch, "freelb", embedded.shape[1:], "uniform")
        coordinates = mask.flatten(1).sum(dim=1).clamp(min=1) * embedded.shape[-1]
        size = _as_factor(self.initial / coordinates.sqrt(), embedded)
        return draws.to(embedded.dtype) * mask * size

    def _ascend(self) -> None:
        assert self._delta is not None
        if self._delta.grad is not None:
            moved = ascend_in_ball(self._delta, self._delta.grad, self.step_size, self.radius)
            self._delta = moved.requires_grad_()

    @hookimpl
    def sft_gradients(self, run: Run) -> None:
        """Turn the sum over the points into their mean."""
        if self.steps > 1:
            for parameter in run.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self.steps)


def generator_states(device: torch.device) -> list[Tensor]:
    """Return what dropout draws from: the state of the host's generator and of the device's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generator_states(device: torch.device, states: list[Tensor]) -> None:
    """Set them again, so that the same masks are drawn."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)


def inner_step_again(run: Run, batch: Batch) -> None:
    """Run the inner step once more, adding to the gradients but not to the recorded loss."""
    # The ledger is the loop's; a record of several passes would show several times the loss.
    ledger = getattr(getattr(run.forward_backward, "__self__", None), "ledger", None)
    with contextlib.nullcontext() if ledger is None else ledger.paused():
        run.forward_backward(batch)


class FGM:
    """Train on the loss plus the loss after a step of the embedding weights uphill.

    One step for the window, along its whole gradient: the same however the window is cut. Miyato, Dai,
    Goodfellow 2016, equation 5, with the embedding weights in place of each example's embeddings, as is
    usual in text competitions.

    Args:
        epsilon: Length of the step; 0 switches it off.
    """

    capabilities = Capabilities(second_forward=True)

    def __init__(self, epsilon: Annotated[float, Ge(0)] = 1.0) -> None:
        self.epsilon = epsilon
        self._weights: list[nn.Parameter] = []

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the embeddings."""
        self._weights = list(input_embeddings(run.model, "fgm").parameters())

    @hookimpl(tryfirst=True)
    def sft_gradients(self, run: Run) -> None:
        """Add the gradient after the step uphill to the one that is there."""
        moved = [w for w in self._weights if w.grad is not None]
        if not (self.epsilon and moved):
            return
        before = [weight.detach().clone() for weight in moved]
        add_scaled_gradient(moved, self.epsilon)
        clean = put_aside(run)
        with frozen_statistics(run.model):
            run.replay_window()
        clean.add()
        copy_all_(moved, before)


@torch.no_grad()
def add_scaled_gradient(weights: list[Any], epsilon: float) -> None:
    """Move weights by `epsilon` along their common gradient, in place; not at all if it is not finite."""
    norm = total_norm([w.grad for w in weights])
    scale = torch.where(norm.isfinite() & (norm > 0), epsilon / norm, 0.0)
    for weight in weights:
        weight.add_(torch.where(scale > 0, weight.grad * scale, 0.0))
