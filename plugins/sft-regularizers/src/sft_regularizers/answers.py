"""Distances between two answers of a model to the same examples, whatever its head is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sft_engine import logits_of

if TYPE_CHECKING:
    from sft_engine import Batch, Run

MASKED = -100


def log_probabilities(logits: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of each outcome (n, outputs, outcomes) and their probabilities.

    Args:
        logits: (n, outputs).
        kind: `classification` has one variable with a value a class, `multi-label` one of two values a
            label.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if kind == "multi-label":
        logs = torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], dim=-1)
    else:
        logs = functional.log_softmax(logits, dim=-1).unsqueeze(-2)
    return logs, logs.exp()


def symmetric_kl(one: Tensor, other: Tensor, kind: str = "classification") -> Tensor:
    """Return KL(p, q) + KL(q, p) of each example (n,); for real values the mean squared difference.

    Args:
        one: Logits, or values, (n, outputs).
        other: The same.
        kind: Of the head: `classification`, `multi-label` (mean over labels) or `regression`.
    """
    if kind == "regression":
        return (one - other).square().flatten(1).mean(dim=1)
    (log_p, p), (log_q, q) = log_probabilities(one, kind), log_probabilities(other, kind)
    return ((p - q) * (log_p - log_q)).sum(dim=-1).flatten(1).mean(dim=1)


def entropy(logits: Tensor, kind: str = "classification") -> Tensor:
    """Return the entropy of each example's prediction (n,), in nats; mean over labels.

    Args:
        logits: (n, outputs).
        kind: `classification` or `multi-label`.
    """
    logs, shares = log_probabilities(logits, kind)
    return -(shares * logs).sum(dim=-1).flatten(1).mean(dim=1)


def kl_at_temperature(
    student: Tensor, teacher: Tensor, temperature: float, kind: str = "classification"
) -> Tensor:
    """Return T^2 KL(teacher, student) at a temperature, of each example (n,).

    Hinton, Vinyals, Dean 2015, section 2; the factor keeps gradients in scale. For real values half the
    mean squared difference.

    Args:
        student: Logits (n, outputs).
        teacher: The same; gets no gradient.
        temperature: Logits are divided by it.
        kind: Of the head.
    """
    if kind == "regression":
        return 0.5 * (student - teacher.detach()).square().flatten(1).mean(dim=1)
    log_q, _ = log_probabilities(student / temperature, kind)
    log_p, p = log_probabilities(teacher.detach() / temperature, kind)
    return temperature**2 * (p * (log_p - log_q)).sum(dim=-1).flatten(1).mean(dim=1)


def sum_over_items(each: Tensor, batch: Batch) -> Tensor:
    """Sum over those examples that the task counts: not over those whose label is masked."""
    label = batch.targets.get("label")
    if label is None or label.is_floating_point() or label.ndim != 1:
        return each.sum()
    return torch.where(label == MASKED, 0.0, each).sum()


def answer_again(run: Run, batch: Batch) -> Any:
    """Run the model on a batch once more, beside the loop's own pass, and return its outputs.

    Past DDP's wrapper, which expects one forward pass for each backward pass; the gradients meet in the
    same parameters.
    """
    return run.backbone.forward(run.model, batch.inputs)


def logits_again(run: Run, batch: Batch) -> Tensor:
    """As `answer_again`, the logits alone."""
    return logits_of(answer_again(run, batch))


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm use the statistics of a batch inside without remembering them."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for norm, (_, seen) in zip(norms, before, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if seen is None else seen.clone()
    try:
        yield
    finally:
        for norm, (momentum, seen) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, seen
