"""Batch norm's statistics, computed anew for weights that no training step has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_engine import View
from sft_engine.feed import evaluation_batches

if TYPE_CHECKING:
    from sft_engine import Run


@torch.no_grad()
def update_statistics(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    forward: Callable[[Mapping[str, Tensor]], Any],
) -> None:
    """Set batch norm's statistics to the mean over batches; nothing else is in training mode.

    Izmailov et al. 2018, section 3.2: averaged weights make other activations than any weights that the
    statistics were collected with.

    Args:
        model: Its batch norms are changed; all modules keep their modes.
        batches: Inputs; not asked for if there is no batch norm.
        forward: Runs the model.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
        norm.train()
    for batch in batches:
        forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def recompute_statistics(run: Run, model: nn.Module) -> None:
    """Do so over the training split of a run; every rank sees all of it, and gets the same."""
    split = run.splits["train"]
    size = run.plan.train.micro_batch_size or run.plan.train.batch_size
    starts = range(0, len(split), size)
    batches = evaluation_batches(split, run.task, run.backbone, View(), size, starts)

    def inputs() -> Iterable[Mapping[str, Tensor]]:
        for batch in batches:
            batch.to(run.device)
            yield batch.inputs

    update_statistics(model, inputs(), lambda each: run.backbone.forward(model, each))
