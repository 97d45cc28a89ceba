"""Losses as sums over examples, in float32 or better: the pure functions behind the tasks.

A sum, because only the sum over a whole window, divided by what the whole window counts, is the same
however the window is cut into micro-batches and spread over ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Objective = Literal["squared", "absolute", "huber"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float32 or float64."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def cross_entropy_sum(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the summed cross-entropy.

    Divided by the sum of the weights of the target classes it equals the mean of
    `torch.nn.functional.cross_entropy(weight=, label_smoothing=)` over the whole batch.

    Args:
        logits: (n, classes).
        target: Class ids (n,), -100 where masked, or class probabilities (n, classes).
        weight: One weight a class.
        label_smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7).
    """
    logits = at_least_float32(logits)
    if target.is_floating_point():
        target = target.to(logits.dtype)
    return functional.cross_entropy(
        logits, target, weight, reduction="sum", label_smoothing=label_smoothing
    )


def binary_cross_entropy_sum(
    logits: Tensor, target: Tensor, pos_weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the binary cross-entropy, averaged over the labels of an example, summed over examples.

    Args:
        logits: (n, labels).
        target: Flags or probabilities (n, labels).
        pos_weight: One weight a label, for its positive examples.
        label_smoothing: Moves targets from 0 and 1 towards one half by half of this share.
    """
    return _binary(logits, target, pos_weight, label_smoothing).mean(dim=1).sum()


def _binary(
    logits: Tensor, target: Tensor, pos_weight: Tensor | None, label_smoothing: float
) -> Tensor:
    logits = at_least_float32(logits)
    target = target.to(logits.dtype)
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return functional.binary_cross_entropy_with_logits(
        logits, target, pos_weight=pos_weight, reduction="none"
    )


def regression_loss(outputs: Tensor, target: Tensor, objective: Objective, delta: float) -> Tensor:
    """Return the loss of each example (n,), averaged over its outputs.

    Args:
        outputs: (n, outputs) or (n,).
        target: The same number of values.
        objective: `squared` error, `absolute` error, or `huber` (Huber 1964): half the squared error
            up to `delta`, linear beyond.
        delta: Where `huber` becomes linear.
    """
    outputs = at_least_float32(outputs).reshape(len(target), -1)
    target = target.to(outputs.dtype).reshape(len(target), -1)
    if objective == "squared":
        errors = functional.mse_loss(outputs, target, reduction="none")
    elif objective == "absolute":
        errors = functional.l1_loss(outputs, target, reduction="none")
    else:
        errors = functional.huber_loss(outputs, target, reduction="none", delta=delta)
    return errors.mean(dim=1)


def example_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the plain loss of each example (n,): neither weighted nor smoothed, 0 where masked.

    Args:
        logits: (n, classes).
        target: Class ids (n,), or one flag a label (n, labels).
    """
    if target.ndim == 1:
        return functional.cross_entropy(at_least_float32(logits), target, reduction="none")
    return _binary(logits, target, None, 0.0).mean(dim=1)


def balanced_weights(counts: Tensor) -> Tensor:
    """Return class weights n / (classes * count), 0 for a class without examples (scikit-learn's).

    Args:
        counts: Training examples of each class.
    """
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts)
    return torch.where(counts > 0, weights, 0.0)


def balanced_pos_weights(counts: Tensor, total: int) -> Tensor:
    """Return negatives / positives of each label, 1 for a label without positives.

    Args:
        counts: Training examples that have each label.
        total: Training examples.
    """
    counts = counts.double()
    return torch.where(counts > 0, (total - counts) / counts, 1.0)
