"""How training and validation loss differ, and whether the latter has risen: the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sft_engine.reporting.curves import Record, is_number, loss_of, of_split, of_training

_LAST_SHARE = 10
_LEAST_RECORDS = 3


def gap(records: Sequence[Record], kept: int) -> dict[str, Any]:
    """Compare the losses at the step whose weights were kept, and follow the validation loss.

    The training loss is the task's own, without regularizers, averaged over the last tenth of the
    records up to that step. Dropout, augmentation, smoothing and class weights are in it and not in the
    validation loss: they make it greater, and the gap smaller than it is.

    Args:
        records: Of metrics.jsonl.
        kept: The step.

    Returns:
        `metric`, `training`, `validation`, `step`; `lowest`, `lowest_step`, `last`, `last_step` of the
        validation loss. Empty if either loss is not known.
    """
    train = [r for r in of_training(records) if r["step"] <= kept]
    evaluated = [(r["step"], loss_of(r)) for r in of_split(records, "validation")]
    losses = {step: found for step, found in evaluated if found is not None}
    key = "loss/task" if any("loss/task" in r for r in train) else "loss"
    values = [float(r[key]) for r in train if is_number(r.get(key))]
    if not losses or not values:
        return {}
    last = values[-max(_LEAST_RECORDS, len(values) // _LAST_SHARE) :]
    at = max((step for step in losses if step <= kept), default=min(losses))
    lowest = min(losses, key=lambda step: losses[step][1])
    final = max(losses)
    return {
        "metric": losses[at][0],
        "training": sum(last) / len(last),
        "validation": losses[at][1],
        "step": at,
        "lowest": losses[lowest][1],
        "lowest_step": lowest,
        "last": losses[final][1],
        "last_step": final,
        "evaluations": len(losses),
    }
