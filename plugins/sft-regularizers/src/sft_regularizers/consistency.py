"""Two answers to one example shall agree: under dropout (R-Drop) and under noise (R3F, R4F)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from sft_engine import Capabilities, LossTerm, hookimpl, logits_of
from sft_regularizers.answers import (
    answer_again,
    frozen_statistics,
    logits_again,
    sum_over_items,
    symmetric_kl,
)
from sft_regularizers.embeddings import changed, example_noise, input_embeddings
from sft_regularizers.selection import last_linear

if TYPE_CHECKING:
    from sft_engine import Batch, Run


class RDrop:
    """Answer each example twice under different dropout, and pull the two answers together.

    The objective is the mean of the two losses plus `alpha` times the mean of both Kullback-Leibler
    divergences (Wu et al. 2021, equation 4, in the weights of the authors' code).

    Args:
        alpha: Strength; the authors take 0.1 to 1 for GLUE, 0.6 for ViT, 5 for translation. 0 switches the
            second pass off.
    """

    capabilities = Capabilities(second_forward=True)

    def __init__(self, alpha: Annotated[float, Ge(0)] = 0.5) -> None:
        self.alpha = alpha

    @hookimpl
    def sft_loss_terms(self, run: Run, batch: Batch, outputs: Any) -> Iterator[LossTerm]:
        """Add half the difference that the second pass makes to the task's loss, and the distance."""
        if not self.alpha:
            return
        again = answer_again(run, batch)
        first, second = run.task.loss(outputs, batch), run.task.loss(again, batch)
        # The task's own term counts the first pass in full: with this it is the mean of both.
        yield LossTerm("r-drop/second-pass", second.value - first.value, 0.5, per=first.per)
        apart = symmetric_kl(logits_of(outputs), logits_of(again), run.task.head.kind)
        yield LossTerm("r-drop", sum_over_items(apart, batch), 0.5 * self.alpha)


class R3F:
    """Answer each example again with noise on its embeddings, and pull the two answers together.

    Aghajanyan et al. 2020, equation 5; as in the authors' code the noisy pass gives no gradient to the
    embeddings.

    Args:
        strength: Factor of KL(p, q) + KL(q, p).
        epsilon: Size of the noise.
        noise: `uniform` between -epsilon and epsilon, or `normal` with that standard deviation.
    """

    capabilities = Capabilities(second_forward=True)
    name = "r3f"

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 1.0,
        epsilon: Annotated[float, Ge(0)] = 1e-5,
        noise: Literal["uniform", "normal"] = "uniform",
    ) -> None:
        self.strength, self.epsilon, self.noise = strength, epsilon, noise
        self._embeddings: nn.Module = nn.Module()

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the embeddings."""
        self._embeddings = input_embeddings(run.model, self.name)

    @hookimpl
    def sft_loss_terms(self, run: Run, batch: Batch, outputs: Any) -> Iterator[LossTerm]:
        """Add the distance between the answers with and without noise."""
        if not (self.strength and self.epsilon):
            return

        def noisy(embedded: Tensor) -> Tensor:
            draws = example_noise(run, batch, self.name, embedded.shape[1:], self.noise)
            return embedded.detach() + self.epsilon * draws.to(embedded.dtype)

        with changed(self._embeddings, noisy), frozen_statistics(run.model):
            again = logits_again(run, batch)
        apart = symmetric_kl(again, logits_of(outputs), run.task.head.kind)
        yield LossTerm(self.name, sum_over_items(apart, batch), self.strength)


@torch.no_grad()
def normalize_spectrally_(weight: Tensor) -> None:
    """Divide a matrix by its largest singular value, in place."""
    exact = weight if weight.dtype == torch.float64 else weight.float()
    weight.div_(torch.linalg.matrix_norm(exact, ord=2).to(weight.dtype))


class R4F(R3F):
    """R3F with a head whose last linear layer has spectral norm one.

    The norm is restored after every step: the weights that are saved are those that were trained.

    Args:
        strength: Factor of KL(p, q) + KL(q, p).
        epsilon: Size of the noise.
        noise: `uniform` between -epsilon and epsilon, or `normal` with that standard deviation.
        spectral: Whether the head is normalized; without it, this is R3F.
    """

    name = "r4f"

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 1.0,
        epsilon: Annotated[float, Ge(0)] = 1e-5,
        noise: Literal["uniform", "normal"] = "uniform",
        spectral: bool = True,  # noqa: FBT001, FBT002  an option of a recipe
    ) -> None:
        super().__init__(strength, epsilon, noise)
        self.spectral = spectral
        self._head: nn.Linear | None = None
        self._normalized = False

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find embeddings and head; a head that was just made is normalized at once."""
        super().sft_setup(run)
        if self.spectral:
            self._head = last_linear(run, "r4f")
            if not self._normalized:  # a second time would change the last bits
                normalize_spectrally_(self._head.weight)
            self._normalized = True

    @hookimpl(tryfirst=True)
    def sft_step_end(self, run: Run) -> None:  # noqa: ARG002
        """Normalize the head."""
        if self._head is not None and self._head.weight.requires_grad:
            normalize_spectrally_(self._head.weight)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the head was normalized before training."""
        return {"normalized": self._normalized}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""
        self._normalized = state["normalized"]
