"""Class weights in the loss, from the numbers of training examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from sft_augmentations.sampling import MASKED, prepared_labels
from sft_engine import RecipeError, hookimpl
from sft_engine.builtin.losses import balanced_pos_weights, balanced_weights

if TYPE_CHECKING:
    from sft_engine import Run, Split

Method = Literal["inverse", "effective"]


def effective_numbers(counts: Tensor, beta: float) -> Tensor:
    """Return the effective number of examples `(1 - beta^n) / (1 - beta)` of each class, float64.

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", proposition 1: 1 for every
    class that has examples with beta 0, and n in the limit of beta 1.
    """
    counts = counts.double()
    if beta == 0:
        return (counts > 0).double()
    # Not 1 - beta ** n, which loses its digits where beta is near 1.
    return -torch.expm1(counts * math.log(beta)) / (1 - beta)


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """Return class weights in proportion to `(1 - beta) / (1 - beta^n)`, summing to the number of classes.

    Cui et al. 2019, equation 10. A class without examples gets 0 and is not counted.

    Args:
        counts: Training examples of each class.
        beta: 0 for equal weights; the nearer to 1, the nearer to the inverse frequency.
    """
    numbers = effective_numbers(counts, beta)
    weights = torch.where(numbers > 0, 1 / numbers, 0.0)
    return weights * ((numbers > 0).sum() / weights.sum())


def effective_pos_weights(counts: Tensor, total: int, beta: float) -> Tensor:
    """Return the effective number of negatives over that of positives of each label.

    With one label this is the ratio of the weights that `effective_weights` gives to "yes" and "no". A label
    without positives gets 1.

    Args:
        counts: Training examples that have each label.
        total: Training examples.
        beta: 0 for 1; the nearer to 1, the nearer to negatives / positives.
    """
    positives = effective_numbers(counts, beta)
    negatives = effective_numbers(total - counts, beta)
    return torch.where(positives > 0, negatives / positives, 1.0)


class ClassWeights:
    """Let examples of rare classes count more in the loss.

    The loss of a window is divided by the sum of its weights, so that only their ratios matter. Focal loss,
    logit adjustment, label smoothing and mixed targets use these weights like those of
    `task.class_weights`, of which this is another way; a recipe has one of both. With several labels they are
    weights of the positive examples of each label. The logged loss of evaluation stays the plain one.

    Args:
        method: By one over the number of examples (`inverse`, the same as `task.class_weights = "balanced"`),
            or over their effective number (`effective`; Cui et al. 2019), which grows ever more slowly.
        beta: Of `effective`: 0 weighs all alike, 0.9 to 0.9999 is usual, near 1 is `inverse`.
    """

    def __init__(
        self, method: Method = "effective", beta: Annotated[float, Ge(0), Lt(1)] = 0.999
    ) -> None:
        self.method, self.beta = method, beta

    @hookimpl
    def sft_build_data(self, run: Run, split: str, data: Split) -> None:
        """Count the training labels and tell the task, before anything asks it for its weights."""
        if split != "train" or (self.method == "effective" and self.beta == 0):
            return
        kind, task = run.task.head.kind, run.task
        if kind == "regression" or not hasattr(task, "set_weight"):
            found = kind if kind == "regression" else type(task).__name__
            raise RecipeError(f"`class-weights` needs classes, and the task is {found}; remove it")
        task.set_weight(self.weights(torch.from_numpy(prepared_labels(data.rows)), task))

    def weights(self, label: Tensor, task: Any) -> Tensor:
        """Return the weights for class ids (n,) or flags (n, labels) of all training examples."""
        if label.ndim > 1:
            counts = (label > 0).sum(dim=0)
            if self.method == "inverse":
                return balanced_pos_weights(counts, len(label))
            return effective_pos_weights(counts, len(label), self.beta)
        counts = torch.bincount(label[label != MASKED], minlength=task.head.outputs)
        if self.method == "inverse":
            return balanced_weights(counts)
        return effective_weights(counts, self.beta)
