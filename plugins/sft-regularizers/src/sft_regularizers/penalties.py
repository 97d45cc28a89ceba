"""Penalties on the size or the shape of weights: l1, l2, elastic net, orthogonality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from sft_engine import Capabilities, LossTerm, hookimpl
from sft_regularizers.selection import Parameters, chosen, rates, trainable

if TYPE_CHECKING:
    from sft_engine import Run


# --- The methods themselves, for any loop ---------------------------------------------------------


def absolute_sum(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum of absolute values over all weights (Tibshirani 1996, the lasso)."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


def half_square_sum(weights: Iterable[Tensor]) -> Tensor:
    """Return half the sum of squares over all weights; its gradient is the weights themselves."""
    return 0.5 * torch.stack([weight.square().sum() for weight in weights]).sum()


@torch.no_grad()
def soft_threshold_(weight: Tensor, amount: float) -> None:
    """Move every weight towards zero by an amount, in place, and no further: true zeros.

    The proximal operator of `amount * |w|` (Daubechies, Defrise, De Mol 2004, section 2).
    """
    weight.copy_(weight.sign() * (weight.abs() - amount).clamp(min=0))


def non_orthogonality(weight: Tensor) -> Tensor:
    """Return the squared distance of a matrix's Gram matrix from the identity.

    `|W'W - I|^2`, or `|WW' - I|^2` where there are fewer rows than columns (soft orthogonality: Bansal
    et al. 2018, section 3.1). More than two dimensions count as (first, all others).
    """
    matrix = weight.flatten(1)
    # In bf16 a Gram matrix has three digits; whoever asks for orthogonality wants more.
    with torch.autocast(weight.device.type, enabled=False):
        wide = matrix.shape[0] < matrix.shape[1]
        gram = matrix @ matrix.T if wide else matrix.T @ matrix
        return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()


# --- The components -------------------------------------------------------------------------------


class L1:
    """Pull weights towards zero by a constant amount; small ones become exactly zero.

    Args:
        strength: Factor of the sum of absolute weights in the objective.
        form: `proximal` moves each weight by `lr * strength` towards zero after the step, and not beyond:
            zeros are zeros. `subgradient` is a term of the loss: weights end near zero.
        only: Shell patterns of layer groups or parameters; empty for all weights but biases and norms.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 1e-5,
        form: Literal["proximal", "subgradient"] = "proximal",
        only: tuple[str, ...] = (),
    ) -> None:
        self.strength, self.form, self.only = strength, form, tuple(only)
        self._weights: Parameters = {}

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the weights."""
        self._weights = chosen(run, self.only, "only of l1")

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add the sum of absolute weights, if the form is a term."""
        weights = trainable(self._weights)
        if self.strength and self.form == "subgradient" and weights:
            yield LossTerm("l1", absolute_sum(weights.values()), self.strength, per="step")

    @hookimpl(tryfirst=True)
    def sft_step_end(self, run: Run) -> None:
        """Soft-threshold, before anything averages the weights."""
        if not self.strength or self.form != "proximal":
            return
        for name, lr in rates(run, trainable(self._weights)):
            soft_threshold_(self._weights[name], lr * self.strength)


class L2:
    """Pull weights towards zero in proportion to their size, as a term of the loss.

    Under Adam this is not weight decay: the term is rescaled like every gradient.

    Args:
        strength: Factor of half the sum of squared weights.
        only: Shell patterns of layer groups or parameters; empty for all weights but biases and norms.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self, strength: Annotated[float, Ge(0)] = 1e-4, only: tuple[str, ...] = ()
    ) -> None:
        self.strength, self.only = strength, tuple(only)
        self._weights: Parameters = {}

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the weights."""
        self._weights = chosen(run, self.only, "only of l2")

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add half the sum of squares."""
        weights = trainable(self._weights)
        if self.strength and weights:
            yield LossTerm("l2", half_square_sum(weights.values()), self.strength, per="step")


class ElasticNet:
    """Pull weights towards zero by l1, which makes zeros, and l2, which keeps groups together.

    Args:
        strength: Factor of the whole penalty.
        l1_ratio: Share of l1; the rest is half the sum of squares, as in scikit-learn.
        form: Of the l1 part: `proximal` after the step, or `subgradient` in the loss.
        only: Shell patterns of layer groups or parameters; empty for all weights but biases and norms.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 1e-5,
        l1_ratio: Annotated[float, Ge(0), Le(1)] = 0.5,
        form: Literal["proximal", "subgradient"] = "proximal",
        only: tuple[str, ...] = (),
    ) -> None:
        self.l1 = L1(strength * l1_ratio, form, only)
        self.l2 = L2(strength * (1 - l1_ratio), only)

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the weights."""
        self.l1.sft_setup(run)
        self.l2.sft_setup(run)

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:
        """Add the parts that are terms."""
        yield from self.l1.sft_loss_terms(run)
        yield from self.l2.sft_loss_terms(run)

    @hookimpl(tryfirst=True)
    def sft_step_end(self, run: Run) -> None:
        """Soft-threshold."""
        self.l1.sft_step_end(run)


class Orthogonal:
    """Keep the columns (or rows) of weight matrices orthogonal and of length one.

    Args:
        strength: Factor of the squared distance of each Gram matrix from the identity.
        only: Shell patterns of layer groups or parameters; empty for all weights but biases and norms.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self, strength: Annotated[float, Ge(0)] = 1e-4, only: tuple[str, ...] = ()
    ) -> None:
        self.strength, self.only = strength, tuple(only)
        self._weights: Parameters = {}

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the weights."""
        self._weights = chosen(run, self.only, "only of orthogonal")

    @hookimpl
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add the sum over all matrices."""
        weights = trainable(self._weights)
        if self.strength and weights:
            value = torch.stack([non_orthogonality(w) for w in weights.values()]).sum()
            yield LossTerm("orthogonal", value, self.strength, per="step")
