"""Whether an exported model gives the run's own outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sft_engine.components import logits_of
from sft_engine.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine.flow import Run

Answer = Callable[[Mapping[str, "Tensor"]], "Tensor"]
"""What an exported model gives for a batch of inputs: logits, as one who loads it would get them."""


@dataclass(frozen=True)
class Compared:
    """How far an exported model is from the run.

    Args:
        difference: Largest difference of an output.
        allowed: How large it may be.
        shape: Of the outputs of one example.
    """

    difference: float
    allowed: float
    shape: tuple[int, ...]


def outputs_of(run: Run, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Run a model of the run's backbone on a batch; return its logits."""
    with torch.no_grad():
        return logits_of(run.backbone.forward(model, dict(batch)))


def compare(
    form: str,
    answer: Answer,
    batches: Sequence[Mapping[str, Tensor]],
    expected: Sequence[Tensor],
    tolerance: float,
) -> Compared:
    """Compare what an exported model answers with what the run gave.

    Raises:
        ExportError: an output has another shape, is not finite where the run's is, or is too far off.
    """
    difference = 0.0
    for batch, wanted in zip(batches, expected, strict=True):
        found = answer(batch)
        if found.shape != wanted.shape:
            raise ExportError(
                f"{form}: for inputs of {_shapes(batch)} the exported model gives "
                f"{list(found.shape)} outputs, the run {list(wanted.shape)}; nothing was exported"
            )
        difference = max(difference, _distance(found, wanted), key=_nan_last)
    largest = max(float(wanted.abs().max()) for wanted in expected)
    allowed = tolerance * max(1.0, largest)
    if not difference <= allowed:
        raise ExportError(
            f"{form}: outputs of the exported model differ from the run's by up to {difference:.2g}, "
            f"allowed: {allowed:.2g} (outputs reach {largest:.3g}); nothing was exported, choose another "
            "--format"
        )
    return Compared(difference, allowed, tuple(expected[0].shape[1:]))


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max())


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _shapes(batch: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
