"""Mixed examples with mixed targets.

mixup: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1. CutMix: Yun et al. 2019,
"CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", equations 1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.distributions import Beta

from sft_augmentations.batches import BatchAugmentation
from sft_engine import Batch, RecipeError

if TYPE_CHECKING:
    from sft_engine import Run

MASKED = -100
IMAGE_DIMENSIONS = 4

Per = Literal["batch", "example"]


def mixed(values: Tensor, partner: Tensor, kept: Tensor) -> Tensor:
    """Return `kept * values + (1 - kept) * values[partner]`.

    Args:
        values: Inputs or targets (n, ...), real numbers.
        partner: Index of the other example for each one (n,).
        kept: Share of each example that stays (n,).
    """
    share = kept.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * values[partner]


def soft_targets(label: Tensor, classes: int) -> Tensor:
    """Return class ids (n,) as probabilities (n, classes); a masked one (-100) becomes zeros."""
    known = label != MASKED
    hot = torch.nn.functional.one_hot(label.clamp(min=0), classes).float()
    return hot * known.unsqueeze(1)


def draw_shares(n: int, alpha: float, share: float, per: Per) -> Tensor:
    """Draw how much of each example stays (n,): 1 where nothing is mixed, else of Beta(alpha, alpha).

    Draws from torch's generator of the CPU.

    Args:
        n: Number of examples.
        alpha: Of the distribution.
        share: Probability that there is any mixing.
        per: One draw for all, or one for each.
    """
    count = n if per == "example" else 1
    drawn = Beta(alpha, alpha).sample((count,))
    mixes = torch.rand(count) < share
    return torch.where(mixes, drawn, torch.ones(())).expand(n)


def draw_partners(n: int, taking_part: Tensor | None = None) -> Tensor:
    """Draw a permutation (n,) of the examples; those that take no part stay where they are.

    Draws from torch's generator of the CPU.
    """
    partner = torch.arange(n)
    places = partner if taking_part is None else partner[taking_part]
    return partner.index_copy(0, places, places[torch.randperm(len(places))])


def cutmix_boxes(kept: Tensor, height: int, width: int) -> Tensor:
    """Draw the rectangle of each image that its partner fills: (n, 4) top, left, bottom, right.

    Its sides are `sqrt(1 - kept)` of the image's, its centre is uniform, and it is cut off at the border, so
    that its area may be smaller. Draws from torch's generator of the CPU; equal shares get equal boxes if
    `kept` is an expanded tensor of one element.
    """
    count = 1 if kept.stride(0) == 0 else len(kept)
    cut = 0.5 * (1 - kept[:count].double()).sqrt()
    centre_y, centre_x = torch.randint(height, (count,)), torch.randint(width, (count,))
    half_h, half_w = (cut * height).long(), (cut * width).long()
    sides = [
        (centre_y - half_h).clamp(min=0),
        (centre_x - half_w).clamp(min=0),
        (centre_y + half_h).clamp(max=height),
        (centre_x + half_w).clamp(max=width),
    ]
    return torch.stack(sides, dim=1).expand(len(kept), 4)


def kept_outside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the share of each image (n,) that is outside of its box."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return 1 - area.double() / (height * width)


def pasted(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """Return images (n, c, h, w) whose boxes are filled from their partners."""
    rows = torch.arange(images.shape[2], device=images.device).view(1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, -1)
    top, left, bottom, right = (side.view(-1, 1, 1) for side in boxes.unbind(dim=1))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(inside.unsqueeze(1), images[partner], images)


class Mixing(BatchAugmentation):
    """What mixup and CutMix have in common: pairs, targets, what cannot be mixed.

    Pairs are of one micro-batch: with accumulation, or several processes, an example meets only those of
    its own micro-batch.
    """

    changes_labels = True
    name = ""

    def __init__(self, alpha: float, share: float, per: Per, until: float) -> None:
        super().__init__(until)
        self.alpha, self.share, self.per = alpha, share, per

    @property
    def effective(self) -> bool:
        """Whether anything is mixed."""
        return super().effective and self.alpha > 0 and self.share > 0

    def change(self, run: Run, batch: Batch, *, again: bool) -> None:
        """Mix inputs and targets."""
        self.refuse(run, batch)
        n = len(batch.ids)
        label = batch.targets.get("label")
        known = None if label is None or label.ndim > 1 else (label != MASKED).cpu()
        kept = draw_shares(n, self.alpha, self.share, self.per)
        partner = draw_partners(n, known)
        names = self.mixable(batch)
        kept, inputs = self.mix({name: batch.inputs[name] for name in names}, partner, kept)
        if again or bool((kept == 1).all()):
            return
        batch.inputs.update(inputs)
        classes = run.task.head.outputs
        for name, target in batch.targets.items():
            soft = target if target.is_floating_point() else soft_targets(target, classes)
            batch.targets[name] = mixed(soft, partner.to(soft.device), kept.to(soft.device))

    def mix(
        self, inputs: dict[str, Tensor], partner: Tensor, kept: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return how much of each example has been kept (n,), and the mixed inputs."""
        raise NotImplementedError

    def mixable(self, batch: Batch) -> list[str]:
        """Return the names of the inputs that are mixed: those of real numbers."""
        return [name for name, value in batch.inputs.items() if value.is_floating_point()]

    def refuse(self, run: Run, batch: Batch) -> None:
        """Raise RecipeError if inputs or targets cannot be mixed."""
        if not self.mixable(batch):
            found = ", ".join(f"{name} {tuple(v.shape)}" for name, v in batch.inputs.items())
            raise RecipeError(
                f"`{self.name}` mixes {self.needs}, and the model takes {found}; remove it, or take an "
                "augmentation that changes rows"
            )
        for name, target in batch.targets.items():
            if not target.is_floating_point() and (
                target.ndim > 1 or run.task.head.kind != "classification"
            ):
                raise RecipeError(
                    f"`{self.name}` mixes class ids, flags and real numbers, one row an example, and the "
                    f"task's target '{name}' is {target.dtype} {tuple(target.shape)}; remove it"
                )
        if getattr(run.task, "label_smoothing", 0) and getattr(run.task, "masked", False):
            raise RecipeError(
                f"`{self.name}` cannot leave examples without a label out of a smoothed loss; set "
                "task.label_smoothing = 0, or leave these examples out of the data"
            )

    needs = "inputs of real numbers"


class Mixup(Mixing):
    """Train on weighted averages of two examples and of their targets.

    With task.class_weights the loss stays exactly normalised only with `per = "batch"`.

    Args:
        alpha: Of the Beta distribution of the weights: 0 mixes nothing, 1 is uniform.
        share: Share of the micro-batches (or examples) that are mixed.
        per: One weight for a micro-batch (`batch`), or one for each example (`example`).
        until: Off after this share of the run.
    """

    name = "mixup"

    def __init__(
        self,
        alpha: Annotated[float, Ge(0)] = 0.2,
        share: Annotated[float, Ge(0), Le(1)] = 1.0,
        per: Per = "batch",
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(alpha, share, per, until)

    def mix(
        self, inputs: dict[str, Tensor], partner: Tensor, kept: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Average every input of real numbers."""
        found = {
            name: mixed(value, partner.to(value.device), kept.to(value.device))
            for name, value in inputs.items()
        }
        return kept, found


class Cutmix(Mixing):
    """Fill a rectangle of each image from another one, and mix the targets by area.

    With task.class_weights the loss stays exactly normalised only with `per = "batch"`.

    Args:
        alpha: Of the Beta distribution of the area that stays: 0 cuts nothing, 1 is uniform.
        share: Share of the micro-batches (or examples) that are mixed.
        per: One rectangle for a micro-batch (`batch`), or one for each example (`example`).
        until: Off after this share of the run.
    """

    name = "cutmix"
    needs = "images (n, channels, height, width)"

    def __init__(
        self,
        alpha: Annotated[float, Ge(0)] = 1.0,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        per: Per = "batch",
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(alpha, share, per, until)

    def mixable(self, batch: Batch) -> list[str]:
        """Return the names of the inputs that are images."""
        return [n for n in super().mixable(batch) if batch.inputs[n].ndim == IMAGE_DIMENSIONS]

    def mix(
        self, inputs: dict[str, Tensor], partner: Tensor, kept: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Paste the same boxes into every input that is an image."""
        height, width = next(iter(inputs.values())).shape[2:]
        boxes = cutmix_boxes(kept, height, width)
        found = {
            name: pasted(value, partner.to(value.device), boxes.to(value.device))
            for name, value in inputs.items()
        }
        return kept_outside(boxes, height, width), found
