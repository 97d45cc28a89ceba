"""Proof that a variant did the work it is timed for.

The batches a variant feeds its model are recorded and trained on again by a plain loop from the
same first weights. Whatever order the variant chose, both must end at the same weights: this
catches another learning rate, schedule, clipping, weight decay, loss or precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MAX_GRAD_NORM = 1.0
# transformers decays no weights unless told to, torch.optim.AdamW does: all are told not to.
WEIGHT_DECAY = 0.0

Weights = dict[str, Tensor]
LossOf = Callable[[nn.Module, dict[str, Tensor]], Tensor]


class Recorder:
    """Keeps the first weights of a model and every batch it is given in training mode.

    A positional input is kept under the name `inputs`.
    """

    def __init__(self) -> None:
        self.first_weights: Weights = {}
        self.batches: list[dict[str, Tensor]] = []

    def watch(self, model: nn.Module) -> None:
        """Record the forward passes of `model`."""
        self.first_weights = weights_of(model)

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training:
                given = {"inputs": args[0], **kwargs} if args else kwargs
                tensors = {k: v.clone() for k, v in given.items() if isinstance(v, Tensor)}
                self.batches.append(tensors)

        model.register_forward_pre_hook(record, with_kwargs=True)


def weights_of(model: nn.Module) -> Weights:
    """A float64 copy of the parameters, by name."""
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def update_distance(first: Weights, ours: Weights, reference: Weights) -> float:
    """How far apart two trainings end: |ours - reference| / |reference - first|.

    Both began at `first`. 0 means the same weights; about 1 or more means that they learned different things.
    """

    def squared(a: Weights, b: Weights) -> float:
        return sum(float((a[name] - b[name]).square().sum()) for name in reference)

    return math.sqrt(squared(ours, reference) / squared(reference, first))


def replay(
    model: nn.Module,
    batches: list[dict[str, Tensor]],
    loss_of: LossOf,
    learning_rate: float,
) -> Weights:
    """Train `model` on the batches in the order given, and return its weights.

    AdamW, gradient norm clipped, learning rate falling linearly to 0 after the last batch.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / len(batches))
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
    return weights_of(model)


def require_each_once(seen: Tensor, expected: Tensor) -> None:
    """Stop unless the rows of `seen` are those of `expected` (n, width), in any order."""
    if seen.shape != expected.shape or not torch.equal(_sorted(seen), _sorted(expected)):
        raise SystemExit(
            f"the variant did not train on each of the {len(expected)} examples exactly once: "
            f"it saw {len(seen)}"
        )


def require_same_weights(distances: dict[str, float], tolerance: float) -> None:
    """Stop unless the closest replay is within `tolerance`; print which one it was."""
    closest = min(distances, key=distances.__getitem__)
    if not distances[closest] <= tolerance:  # also when it is NaN
        raise SystemExit(
            f"the variant ended {distances[closest]:.2e} away from the plain loop on the same "
            f"batches (allowed {tolerance:.0e}): it does other work"
        )
    print(f"same work as the plain loop in {closest}: distance {distances[closest]:.1e}")


def _sorted(rows: Tensor) -> Tensor:
    unique: Tensor = torch.unique(rows, dim=0, sorted=True)
    return unique
