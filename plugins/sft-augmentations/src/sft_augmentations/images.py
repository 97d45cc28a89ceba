"""Augmentations of images by torchvision's transforms v2, consistent per seed, pass and example."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from sft_augmentations.consistency import jensen_shannon_sum
from sft_augmentations.pictures import ImageAugmentation, torch_draws
from sft_engine import Batch, Capabilities, LossTerm, RecipeError, hookimpl, logits_of, order

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sft_augmentations.pictures import Picture
    from sft_engine import Run, Split

Interpolation = Literal["nearest", "bilinear"]


class TorchvisionAugmentation(ImageAugmentation):
    """Applies a transform of torchvision; a subclass makes it, in `make`."""

    def __init__(self, share: float, until: float) -> None:
        super().__init__(share, until)
        self._transform: Callable[[Any], Any] | None = None

    def make(self) -> Callable[[Any], Any]:
        """Return the transform."""
        raise NotImplementedError

    def prepare(self, data: Split) -> None:
        """Make the transform; raise RecipeError if there are no images."""
        super().prepare(data)
        self._transform = self.make()

    def alter(self, picture: Picture, draws: np.random.Generator) -> Picture:
        """Return what the transform makes of the image."""
        if self._transform is None:
            self._transform = self.make()
        with torch_draws(draws):
            altered: Picture = self._transform(picture)
        return altered


class RandAugment(TorchvisionAugmentation):
    """Apply a few random operations of one strength (Cubuk et al. 2020, "RandAugment").

    Args:
        operations: How many, one after the other (N); 0 for none.
        magnitude: Strength of each (M), of 30. At 0 some still act: equalize, autocontrast.
        share: Share of the images that are changed.
        interpolation: How turned and sheared images are filled in: `nearest` or `bilinear`.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        operations: Annotated[int, Ge(0)] = 2,
        magnitude: Annotated[int, Ge(0), Le(30)] = 9,
        share: Annotated[float, Ge(0), Le(1)] = 1.0,
        interpolation: Interpolation = "nearest",
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.operations, self.magnitude = operations, magnitude
        self.interpolation = interpolation

    @property
    def effective(self) -> bool:
        """Whether there is an operation."""
        return super().effective and self.operations > 0

    def make(self) -> Callable[[Any], Any]:
        """Return torchvision's RandAugment."""
        from torchvision.transforms import v2

        transform: Callable[[Any], Any] = v2.RandAugment(
            num_ops=self.operations, magnitude=self.magnitude, interpolation=self.interpolation
        )
        return transform


class TrivialAugment(TorchvisionAugmentation):
    """Apply one random operation of random strength (Müller and Hutter 2021, "TrivialAugment", wide).

    Args:
        share: Share of the images that are changed.
        interpolation: How turned and sheared images are filled in: `nearest` or `bilinear`.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        share: Annotated[float, Ge(0), Le(1)] = 1.0,
        interpolation: Interpolation = "nearest",
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.interpolation = interpolation

    def make(self) -> Callable[[Any], Any]:
        """Return torchvision's TrivialAugmentWide."""
        from torchvision.transforms import v2

        transform: Callable[[Any], Any] = v2.TrivialAugmentWide(interpolation=self.interpolation)
        return transform


class Colour(TorchvisionAugmentation):
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        brightness: Factor is drawn from 1 - this to 1 + this.
        contrast: As brightness.
        saturation: As brightness; without effect on images of one channel, as is hue.
        hue: Turn of the colour circle, up to this share of it either way.
        share: Share of the images that are changed.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        brightness: Annotated[float, Ge(0)] = 0.4,
        contrast: Annotated[float, Ge(0)] = 0.4,
        saturation: Annotated[float, Ge(0)] = 0.4,
        hue: Annotated[float, Ge(0), Le(0.5)] = 0.0,
        share: Annotated[float, Ge(0), Le(1)] = 0.8,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    @property
    def effective(self) -> bool:
        """Whether anything changes."""
        strength = self.brightness + self.contrast + self.saturation + self.hue
        return super().effective and strength > 0

    def make(self) -> Callable[[Any], Any]:
        """Return torchvision's ColorJitter."""
        from torchvision.transforms import v2

        transform: Callable[[Any], Any] = v2.ColorJitter(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
        )
        return transform


class AugMix(TorchvisionAugmentation):
    """Mix an image with chains of operations on it (Hendrycks et al. 2020, "AugMix").

    With `consistency` the loss is taken on the image as it is, and a term draws the predictions for it and
    for two mixtures together, as in the paper: three forward passes a step. The mixtures are then made in
    the process that trains, so `train.workers` does not speed them up.

    Args:
        severity: Strength of the operations, up to 10; 0 for none. The paper's code has 1 for ImageNet,
            torchvision 3.
        width: Number of chains.
        depth: Operations of a chain; 0 draws 1 to 3.
        alpha: Of the distributions of the weights (Dirichlet and Beta).
        all_operations: Also brightness, contrast, colour and sharpness, of which the corruptions of
            ImageNet-C have some.
        consistency: Weight of the Jensen-Shannon term; the paper has 12. 0 trains on the mixture.
        share: Share of the images that are changed; with `consistency`, all of them are.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - options of a recipe
        self,
        severity: Annotated[int, Ge(0), Le(10)] = 3,
        width: Annotated[int, Ge(1)] = 3,
        depth: Annotated[int, Ge(0)] = 0,
        alpha: Annotated[float, Gt(0)] = 1.0,
        all_operations: bool = True,  # noqa: FBT001, FBT002 - an option of a recipe
        consistency: Annotated[float, Ge(0)] = 0.0,
        share: Annotated[float, Ge(0), Le(1)] = 1.0,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.severity, self.width, self.depth, self.alpha = severity, width, depth, alpha
        self.all_operations, self.consistency = all_operations, consistency

    @property
    def capabilities(self) -> Capabilities:
        """With the term there are further forward passes; without, outputs are not looked at."""
        return Capabilities(second_forward=self.consistent, replayable=not self.consistent)

    @property
    def effective(self) -> bool:
        """Whether the images themselves are changed, before the loss."""
        return super().effective and self.severity > 0 and not self.consistency

    @property
    def consistent(self) -> bool:
        """Whether there is a consistency term."""
        return self.consistency > 0 and self.severity > 0 and self.until > 0

    def make(self) -> Callable[[Any], Any]:
        """Return torchvision's AugMix."""
        from torchvision.transforms import v2

        transform: Callable[[Any], Any] = v2.AugMix(
            severity=self.severity,
            mixture_width=self.width,
            chain_depth=self.depth or -1,
            alpha=self.alpha,
            all_ops=self.all_operations,
        )
        return transform

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Make sure that the consistency term has what it needs; raise RecipeError if not."""
        if not self.consistent:
            return
        self.prepare(run.splits["train"])
        kind = run.task.head.kind
        if kind != "classification":
            raise RecipeError(
                f"`augmix`: consistency compares the probabilities of classes, and the task is {kind}; "
                "set consistency = 0"
            )

    @hookimpl
    def sft_loss_terms(self, run: Run, batch: Batch, outputs: Any) -> Iterable[LossTerm]:
        """Return the divergence between the predictions for the image and for two mixtures."""
        if not (self.consistent and self.active):
            return []
        views = (self.view(run, batch, number) for number in (1, 2))
        logits = [logits_of(each) for each in (outputs, *map(run.forward, views))]
        return [LossTerm("augmix", jensen_shannon_sum(logits), self.consistency, "item")]

    def view(self, run: Run, batch: Batch, number: int) -> Batch:
        """Return a batch with mixtures of the same images.

        The other augmentations of rows draw what they drew for the batch itself: the mixtures are of the
        same crops.
        """
        split = run.splits[batch.split or "train"]
        key = (run.seeds.noise, run.clock.epoch)
        rows = [dict(row) for row in split.rows.__getitems__(batch.ids)]
        for index, row_id in enumerate(batch.ids):
            for position, transform in enumerate(split.transforms):
                rows[index] = transform(rows[index], order.generator(*key, row_id, position))
            draws = order.generator(*key, row_id, len(split.transforms), number)
            rows[index] = self.change(rows[index], draws)
        inputs: dict[str, Tensor] = run.backbone.collate(run.backbone.encode_rows(rows, run.task))
        view = Batch({**batch.inputs, **inputs}, {}, batch.ids, split=batch.split)
        view.to(run.device)
        return view
