"""Asking a model about rows that are in no split: those of an attack, or of a file of tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sft_engine import Batch, RecipeError, logits_of
from sft_engine.devices import choose_precision

if TYPE_CHECKING:
    from sft_engine import Run


def require_classes(run: Run, name: str) -> None:
    """Raise RecipeError unless the task has classes, one of which each example has."""
    kind = run.task.head.kind
    if kind != "classification":
        raise RecipeError(f"`{name}` needs one class an example, and the task is {kind}: remove it")


def require_whole_model(run: Run, name: str) -> None:
    """Raise RecipeError where every rank must make the same forward passes (FSDP)."""
    from sft_engine import sharding

    if sharding.is_sharded(run.accelerator):
        raise RecipeError(
            f"`{name}` asks the model about single examples, which weights spread over processes do not "
            "allow: run `sft-engine probe` on the finished run, in one process"
        )


def probabilities(run: Run, rows: Sequence[dict[str, Any]]) -> Tensor:
    """Return the class probabilities of raw rows, in the run's precision: float64 (n, classes) on the CPU.

    Args:
        run: The run; its model is put in evaluation mode and left there.
        rows: Inputs by role; what else they hold does not matter.
    """
    model = run.wrapped if run.accelerator.num_processes == 1 else run.model
    model.eval()
    precision = choose_precision(run.plan.train, run.accelerator, run.model)
    parts = []
    size = batch_size(run)
    # Of similar length together, as evaluation does: less padding.
    order = sorted(range(len(rows)), key=lambda i: -len(str(rows[i].get("text", ""))))
    for start in range(0, len(rows), size):
        chosen = [dict(rows[i]) for i in order[start : start + size]]
        inputs = run.backbone.collate(run.backbone.encode_rows(chosen, run.task))
        batch = Batch(inputs=inputs, targets={}, ids=list(range(len(chosen))))
        batch.to(run.device)
        with torch.no_grad(), precision.autocast():
            logits = logits_of(run.backbone.forward(model, batch.inputs))
        parts.append(logits.detach().double().softmax(dim=1).cpu())
    if not parts:
        return torch.zeros(0, run.task.head.outputs, dtype=torch.float64)
    answers = torch.cat(parts)
    return answers[torch.tensor(order).argsort()]


def batch_size(run: Run) -> int:
    """Return how many examples a forward pass of an evaluation has."""
    train = run.plan.train
    return run.plan.evaluation.batch_size or 2 * (train.micro_batch_size or train.batch_size)
