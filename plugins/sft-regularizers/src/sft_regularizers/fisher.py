"""How much a model's answers depend on each weight: the diagonal of the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sft_engine import RecipeError, View
from sft_engine.feed import evaluation_batches

if TYPE_CHECKING:
    from sft_engine import Run


def fisher_diagonal(
    weights: Mapping[str, nn.Parameter], losses: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return the mean over examples of the squared gradient of the negative log-likelihood.

    Args:
        weights: By name; a weight that a loss does not depend on counts 0.
        losses: The negative log-likelihood of one example each, with its graph.
    """
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    number = 0
    for loss in losses:
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for square, grad in zip(total.values(), grads, strict=True):
            if grad is not None:
                square.add_(grad.square())
        number += 1
    return {name: square / max(number, 1) for name, square in total.items()}


def fisher_of_split(
    run: Run, weights: Mapping[str, nn.Parameter], split: str, examples: int
) -> dict[str, Tensor]:
    """Estimate the Fisher information of a run's weights from examples of a split, in evaluation mode.

    Every rank looks at the same examples, so that no rank needs to tell another.

    Raises:
        RecipeError: there is no such split.
    """
    if split not in run.splits:
        known = ", ".join(run.splits)
        raise RecipeError(f'`split` of the Fisher penalty: found "{split}", the data has: {known}')
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    modes = {module: module.training for module in run.model.modules()}
    run.model.eval()
    for weight in frozen:
        weight.requires_grad_(True)  # noqa: FBT003
    try:
        return fisher_diagonal(weights, _losses(run, split, examples))
    finally:
        for weight in frozen:
            weight.requires_grad_(False)  # noqa: FBT003
        for module, mode in modes.items():
            module.training = mode


def _losses(run: Run, split: str, examples: int) -> Iterator[Tensor]:
    rows = run.splits[split]
    # Evenly over the split, which may be sorted by class.
    every = max(1, len(rows) // examples)
    starts = range(0, len(rows), every)[:examples]
    for batch in evaluation_batches(rows, run.task, run.backbone, View(), 1, starts):
        batch.to(run.device)
        yield run.task.loss(run.backbone.forward(run.model, batch.inputs), batch).value
