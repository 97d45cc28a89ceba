"""What a model answers, as one small tensor for each kind of task, and how two answers differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sft_engine import Head

NOTHING = -1
"""The class of an example for which the model returned NaN."""


def answers_of(predictions: Mapping[str, Tensor], head: Head) -> Tensor:
    """Return class ids (n,), flags (n, labels) or numbers (n, outputs), by the kind of the head."""
    logits = predictions["logits"]
    if head.kind == "regression":
        return logits.double()
    if head.kind == "multi-label":
        return logits > 0
    classes = logits.argmax(dim=1)
    classes[logits.isnan().any(dim=1)] = NOTHING
    return classes


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Say for each example whether the answer is another one: bool (n,)."""
    differs = before != after
    return differs.flatten(1).any(dim=1) if differs.ndim > 1 else differs


def named(answer: Tensor, head: Head) -> str | float:
    """Return one example's answer as a report shows it."""
    if head.kind == "regression":
        numbers = answer.tolist()
        return float(numbers[0]) if len(numbers) == 1 else _numbers(numbers, head.names)
    if head.kind == "multi-label":
        flags = zip(head.names, answer.tolist(), strict=True)
        return ", ".join(name for name, on in flags if on) or "none"
    index = int(answer)
    return head.names[index] if index >= 0 else "none"


def _numbers(values: Sequence[float], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))


def label_of(label: Any, head: Head) -> str | float:
    """Return one example's target as a report shows it."""
    tensor = torch.as_tensor(label)
    return named(tensor > 0 if head.kind == "multi-label" else tensor, head)
