"""Logits and penultimate features of rows, by a forward hook on the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine import Batch, RecipeError, logits_of
from sft_engine.devices import choose_precision
from sft_engine.features import last_input
from sft_probes.asking import batch_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Run

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """What a model said of rows.

    Args:
        logits: (n, outputs).
        features: What enters its last layer with weights (n, features).
    """

    logits: Floats
    features: Floats


def said(run: Run, rows: Sequence[dict[str, Any]], name: str) -> Said:
    """Run the model on raw rows, in the run's precision, and return logits and penultimate features.

    Args:
        run: The run; its model is put in evaluation mode and left there.
        rows: Inputs by role; what else they hold does not matter.
        name: Who asks, for the message.

    Raises:
        RecipeError: the last layer of this model does not see one vector of one size for each example.
    """
    run.model.eval()
    precision = choose_precision(run.plan.train, run.accelerator, run.model)
    logits, features = [], []
    size = batch_size(run)
    for start in range(0, len(rows), size):
        some = [dict(row) for row in rows[start : start + size]]
        inputs = run.backbone.collate(run.backbone.encode_rows(some, run.task))
        batch = Batch(inputs=inputs, targets={}, ids=list(range(len(some))))
        batch.to(run.device)
        with torch.no_grad(), precision.autocast(), last_input(run.model) as seen:
            answers = logits_of(run.backbone.forward(run.model, batch.inputs))
        logits.append(answers.double().cpu().numpy())
        features.append(seen[-1].double().cpu().flatten(1).numpy())
        if len(features[-1]) != len(some) or features[-1].shape[1] != features[0].shape[1]:
            raise RecipeError(
                f"`{name}` needs one vector an example at the model's last layer, which this one does not "
                'have: set `scores = ["max-probability", "max-logit", "energy"]`'
            )
    return Said(np.concatenate(logits), np.concatenate(features))
