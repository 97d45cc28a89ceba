"""Samplers for classes of unequal size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge

from sft_engine import RecipeError, hookimpl
from sft_engine.columns import column_of, is_list

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine import Run, Split

MASKED = -100


def class_sampling_weights(label: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """Return for each example `1 / n ** power`, n being the size of its class; the mean is 1.

    Args:
        label: Class ids (n,); one without a label (-100) gets the mean weight, 1.
        power: 0 draws as the data is, 1 every class equally often, 0.5 in between: by the square root of
            the sizes (Mahajan et al. 2018, "Exploring the Limits of Weakly Supervised Pretraining").
    """
    known = label != MASKED
    _, classes, sizes = np.unique(label[known], return_inverse=True, return_counts=True)
    weights = np.ones(len(label))
    raw = sizes.astype(np.float64)[classes] ** -power
    weights[known] = raw / raw.mean() if len(raw) else raw
    return weights


def label_sampling_weights(flags: NDArray[np.bool_], power: float) -> NDArray[np.float64]:
    """Return for each example the weight of the rarest of its labels; the mean is 1.

    As the repeat factors of Gupta et al. 2019, "LVIS", section 4, for examples with several labels. Those
    without any label count as one more class.

    Args:
        flags: (n, labels).
        power: As in `class_sampling_weights`.
    """
    none = ~flags.any(axis=1, keepdims=True)
    classes = np.concatenate([flags, none], axis=1)
    sizes = np.maximum(classes.sum(axis=0), 1).astype(np.float64)
    weights: NDArray[np.float64] = np.where(classes, sizes**-power, 0.0).max(axis=1)
    weights /= weights.mean()
    return weights


def prepared_labels(rows: Dataset) -> NDArray[np.generic]:
    """Return the column `label` of a prepared split: ids (n,), or flags (n, labels)."""
    column = column_of(rows, "label")
    if is_list(column.type):
        return np.array(column.flatten()).reshape(len(column), -1)
    return np.array(column)


class BalancedSampler:
    """Draw examples of rare classes more often; an epoch has as many examples as without.

    Examples are drawn with replacement, anew in each epoch, so an epoch does not hold all of them.
    `data.resample = "balanced"` repeats rows of small classes instead, once for the whole run.

    Args:
        power: Examples of a class of n are drawn in proportion to 1 / n ** power: 0 as the data is, 0.5 by
            the square root, 1 every class equally often.
    """

    def __init__(self, power: Annotated[float, Ge(0)] = 1.0) -> None:
        self.power = power

    @hookimpl
    def sft_build_data(self, run: Run, split: str, data: Split) -> None:
        """Set the weights of the training split; those of another component are multiplied."""
        if split != "train" or self.power == 0:
            return
        kind = run.task.head.kind
        if kind == "regression":
            raise RecipeError(
                "`balanced-sampler` needs classes, and the task is regression; remove it"
            )
        label = prepared_labels(data.rows)
        weights = (
            label_sampling_weights(label > 0, self.power)  # type: ignore[operator]
            if kind == "multi-label"
            else class_sampling_weights(label.astype(np.int64), self.power)
        )
        data.weights = weights if data.weights is None else data.weights * weights
