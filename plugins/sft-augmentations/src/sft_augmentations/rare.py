"""Losses for classes of unequal size: focal loss and logit adjustment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional

from sft_augmentations.mixing import soft_targets
from sft_augmentations.sampling import MASKED, prepared_labels
from sft_engine import LossTerm, RecipeError, View, hookimpl, logits_of
from sft_engine.builtin.losses import at_least_float32

if TYPE_CHECKING:
    from sft_engine import Batch, Run

    Loss = Callable[[Any, Batch], LossTerm]


# --- focal loss ----------------------------------------------------------------------------------


def focal_sum(
    logits: Tensor,
    target: Tensor,
    gamma: float,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the sum over examples of `- sum_k q_k w_k (1 - p_k)^gamma log p_k`.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4, for soft targets q; for class ids
    it is `- w_t (1 - p_t)^gamma log p_t`, and with gamma 0 the cross-entropy.

    Args:
        logits: (n, classes).
        target: Class ids (n,), -100 where masked, or probabilities (n, classes).
        gamma: How fast well-known examples lose weight.
        weight: One weight a class.
        label_smoothing: Share of the target spread evenly over all classes.
    """
    logits = at_least_float32(logits)
    classes = logits.shape[1]
    soft = target if target.is_floating_point() else soft_targets(target, classes)
    soft = soft.to(logits.dtype)
    if label_smoothing:
        known = soft.sum(dim=1, keepdim=True)  # 0 for what is masked
        soft = (1 - label_smoothing) * soft + label_smoothing / classes * known
    if weight is not None:
        soft = soft * weight.to(logits)
    logs = logits.log_softmax(dim=1)
    # Not exp(logs): at p near 1 the difference would be 0, and its power without a gradient.
    rest = -torch.expm1(logs)
    return -(soft * rest.clamp(min=torch.finfo(logs.dtype).tiny) ** gamma * logs).sum()


def binary_focal_sum(
    logits: Tensor,
    target: Tensor,
    gamma: float,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the binary focal loss, averaged over the labels of an example, summed over examples.

    Args:
        logits: (n, labels).
        target: Flags or probabilities (n, labels).
        gamma: As in `focal_sum`.
        pos_weight: One weight a label, for its positive examples.
        label_smoothing: Moves targets from 0 and 1 towards one half by half of this share.
    """
    logits = at_least_float32(logits)
    target = target.to(logits.dtype)
    if label_smoothing:
        target = target * (1 - label_smoothing) + 0.5 * label_smoothing
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    positive = target * (gamma * no).exp() * yes
    if pos_weight is not None:
        positive = positive * pos_weight.to(logits)
    return -(positive + (1 - target) * (gamma * yes).exp() * no).mean(dim=1).sum()


class Focal:
    """Count examples the less in the loss the better they are known.

    It takes the place of the task's cross-entropy; class weights, label smoothing and soft targets hold as
    before. The logged loss of evaluation stays the plain one.

    Args:
        gamma: An example with probability p of its class counts (1 - p) ** gamma; 0 is the task's own loss.
    """

    def __init__(self, gamma: Annotated[float, Ge(0)] = 2.0) -> None:
        self.gamma = gamma

    @hookimpl
    def sft_build_model(self, run: Run) -> None:
        """Replace the task's loss, before `logit-adjustment` puts its own around it."""
        if self.gamma == 0:
            return
        require_classes(run, "focal")
        task = run.task
        multi = task.head.kind == "multi-label"
        weight = class_weights(run)
        smoothing = float(getattr(task, "label_smoothing", 0.0))
        loss_sum = binary_focal_sum if multi else focal_sum
        per = "item" if multi or weight is None else "weight"

        def loss(outputs: Any, batch: Batch) -> LossTerm:
            logits = logits_of(outputs)
            value = loss_sum(logits, batch.targets["label"], self.gamma, weight, smoothing)
            return LossTerm("task", value, per=per)

        task.loss = loss  # type: ignore[method-assign]


def class_weights(run: Run) -> Tensor | None:
    """Return the class weights of the run's task, or None if it has none."""
    weight: Tensor | None = getattr(run.task, "weight", None)
    return weight


def require_classes(run: Run, name: str) -> None:
    """Raise RecipeError if the task has no classes."""
    kind = run.task.head.kind
    if kind not in ("classification", "multi-label"):
        raise RecipeError(f"`{name}` needs classes, and the task is {kind}; remove it")


# --- logit adjustment ----------------------------------------------------------------------------


def class_offsets(counts: Tensor, tau: float) -> Tensor:
    """Return `tau * log(share of the class)` of each class, float64.

    Args:
        counts: Training examples of each class; none counts as one, so that the offset is finite.
        tau: Strength.
    """
    counts = counts.double().clamp(min=1)
    return tau * (counts / counts.sum()).log()


def label_offsets(counts: Tensor, total: int, tau: float) -> Tensor:
    """Return `tau * log(odds of the label)` of each label, float64.

    Args:
        counts: Training examples that have the label; none counts as one, all as all but one.
        total: Training examples.
        tau: Strength.
    """
    positive = counts.double().clamp(min=1, max=max(total - 1, 1))
    return tau * (positive / (total - positive).clamp(min=1)).log()


class Shifted(nn.Module):
    """A model whose logits are shifted by a constant for each class."""

    def __init__(self, model: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.model = model
        self.shift = nn.Buffer(shift, persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model and shift what it returns, in a copy."""
        outputs = self.model(*args, **kwargs)
        logits = logits_of(outputs)
        shifted = logits + self.shift.to(logits)
        if outputs is logits:
            return shifted
        outputs = copy.copy(outputs)
        outputs.logits = shifted
        return outputs


class LogitAdjustment:
    """Correct for how frequent the classes are in training, as if all were equally frequent.

    Menon et al. 2021, "Long-tail Learning via Logit Adjustment". In the loss, `tau * log(share)` is added to
    the logits, so that those without it are balanced: training alone is changed. Post hoc, it is taken off
    the logits of a model that was trained as ever; the result is a view beside the plain one, `adjusted`,
    and the saved model stays as it is. With labels that do not exclude each other, odds stand for shares.

    Args:
        tau: Strength; 0 for none, 1 as derived in the paper.
        mode: In the `loss`, or `post-hoc` as a further view in each evaluation.
    """

    def __init__(
        self,
        tau: Annotated[float, Ge(0)] = 1.0,
        mode: Literal["loss", "post-hoc"] = "loss",
    ) -> None:
        self.tau, self.mode = tau, mode

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Put the correction around the task's loss."""
        if self.tau == 0 or self.mode != "loss":
            return
        require_classes(run, "logit-adjustment")
        offsets, inner = self.offsets(run), run.task.loss

        def loss(outputs: Any, batch: Batch) -> LossTerm:
            logits = at_least_float32(logits_of(outputs))
            return inner(logits + offsets.to(logits), batch)

        run.task.loss = loss  # type: ignore[method-assign]

    @hookimpl
    def sft_eval_views(self, run: Run) -> Iterable[View]:
        """Offer the view with corrected logits."""
        if self.tau == 0 or self.mode != "post-hoc" or "train" not in run.splits:
            return []
        require_classes(run, "logit-adjustment")
        shift = -self.offsets(run).float()
        model = Shifted(run.model, shift.to(run.device))
        return [View(name="adjusted", model=model, tags={"tau": self.tau})]

    def offsets(self, run: Run) -> Tensor:
        """Return what is added to the logits in the loss, from the training labels."""
        label = torch.from_numpy(prepared_labels(run.splits["train"].rows))
        if label.ndim > 1:
            return label_offsets((label > 0).sum(dim=0), len(label), self.tau)
        counts = torch.bincount(label[label != MASKED], minlength=run.task.head.outputs)
        return class_offsets(counts, self.tau)
