"""Batch spectral shrinkage: suppress the directions of the features that transfer worst."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from sft_engine import LossTerm, RecipeError, hookimpl
from sft_regularizers.selection import last_linear

if TYPE_CHECKING:
    from sft_engine import Run


def smallest_singular_values(features: Tensor, k: int) -> Tensor:
    """Return the sum of squares of the k smallest singular values (Chen et al. 2019, equation 5).

    Args:
        features: (examples, width), of a whole batch.
        k: How many values.
    """
    features = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
    with torch.autocast(features.device.type, enabled=False):
        values: Tensor = torch.linalg.svdvals(features)
        return values[-k:].square().sum()


class BSS:
    """Shrink the smallest singular values of the batch's feature matrix.

    The features are what goes into the last linear layer of the head. The matrix is that of a
    micro-batch, so a window cut in parts is another method: it is refused unless allowed.

    Args:
        strength: Factor of the sum of squares.
        k: How many of the smallest singular values.
        per_micro_batch: Allow windows of several micro-batches or ranks, each a matrix of its own.
    """

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 1e-3,
        k: Annotated[int, Gt(0)] = 1,
        per_micro_batch: bool = False,  # noqa: FBT001, FBT002  an option of a recipe
    ) -> None:
        self.strength, self.k, self.per_micro_batch = strength, k, per_micro_batch
        self._head: nn.Linear | None = None
        self._features = torch.empty(0)

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Listen to what goes into the last linear layer; refuse windows in parts."""
        if not self.strength:
            return
        if run.accelerator.num_processes > 1 and not self.per_micro_batch:
            raise RecipeError(
                "bss looks at a batch as one matrix, and this run has "
                f"{run.accelerator.num_processes} processes with a part each: use one process, or set "
                "`per_micro_batch = true`"
            )
        self._head = last_linear(run, "bss")
        self._head.register_forward_pre_hook(self._listen)

    def _listen(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Not by `layer.training`: a frozen head is in evaluation mode, and what is below it trains.
        if layer is self._head and torch.is_grad_enabled():
            self._features = inputs[0]

    @hookimpl(tryfirst=True)
    def sft_loss_terms(self, run: Run) -> Iterator[LossTerm]:  # noqa: ARG002
        """Add the smallest values; before another term runs the model again."""
        if self.strength and self._features.requires_grad:
            features, self._features = self._features.flatten(1), torch.empty(0)
            value = smallest_singular_values(features, self.k)
            yield LossTerm("bss", value, self.strength, per="step")

    def __deepcopy__(self, memo: dict[int, Any]) -> BSS:
        """Return itself: copies of the model bring the hook along, but they do not train."""
        return self
