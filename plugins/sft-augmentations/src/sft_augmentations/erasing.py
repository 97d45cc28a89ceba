"""Random erasing: Zhong et al. 2020, "Random Erasing Data Augmentation", algorithm 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from sft_augmentations.pictures import ImageAugmentation
from sft_engine import RecipeError

if TYPE_CHECKING:
    from sft_augmentations.pictures import Picture

Fill = Literal["noise", "mean", "black"]
Box = tuple[int, int, int, int]
"""Top, left, height, width."""

_TRIES = 10


def erasing_box(
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    draws: np.random.Generator,
) -> Box | None:
    """Draw a rectangle inside an image, or None if none of ten fits.

    Args:
        size: Height and width of the image.
        area: Smallest and largest share of the image; uniform in between.
        aspect: Smallest and largest height / width; its logarithm is uniform in between.
        draws: Source of randomness.
    """
    height, width = size
    for _ in range(_TRIES):
        pixels = height * width * draws.uniform(*area)
        ratio = math.exp(draws.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < h < height and 0 < w < width:
            return int(draws.integers(height - h + 1)), int(draws.integers(width - w + 1)), h, w
    return None


def erase(pixels: Tensor, box: Box, fill: Fill, draws: np.random.Generator) -> Tensor:
    """Return uint8 pixels (c, h, w) with a rectangle covered.

    Args:
        pixels: The image.
        box: What is covered.
        fill: By random bytes, one for each pixel and channel (what the paper found best), by the mean of
            each channel of the image, or by black.
        draws: Source of randomness.
    """
    top, left, height, width = box
    erased = pixels.clone()
    if fill == "noise":
        shape = (pixels.shape[0], height, width)
        cover = torch.from_numpy(draws.integers(256, size=shape, dtype=np.uint8))
    elif fill == "mean":
        cover = pixels.double().mean(dim=(1, 2), keepdim=True).round().to(torch.uint8)
    else:
        cover = pixels.new_zeros(())
    erased[:, top : top + height, left : left + width] = cover
    return erased


class RandomErasing(ImageAugmentation):
    """Cover a random rectangle of an image.

    It sees the image as the augmentations above it in the recipe have left it: to cover a part of what the
    network sees, put it below the one that crops.

    Args:
        share: Share of the images that are changed.
        area: Smallest and largest share of the image that is covered.
        aspect: Smallest and largest height / width of the rectangle.
        fill: With random bytes (`noise`), the mean of the image (`mean`) or black.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        area: tuple[Annotated[float, Ge(0), Le(1)], Annotated[float, Ge(0), Le(1)]] = (0.02, 0.33),
        aspect: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.3, 3.3),
        fill: Fill = "noise",
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.area, self.aspect, self.fill = area, aspect, fill

    def check(self) -> None:
        """Raise RecipeError for a range whose end is before its begin."""
        for name, (least, most) in (("area", self.area), ("aspect", self.aspect)):
            if least > most:
                raise RecipeError(
                    f"`random-erasing`: {name} = [{least:g}, {most:g}], needed: the smaller number first"
                )

    @property
    def effective(self) -> bool:
        """Whether anything is covered."""
        return super().effective and self.area[1] > 0

    def alter(self, picture: Picture, draws: np.random.Generator) -> Picture:
        """Return the image with a rectangle covered."""
        from torchvision.transforms.v2 import functional

        is_tensor = isinstance(picture, Tensor)
        pixels: Tensor = (
            picture if isinstance(picture, Tensor) else functional.pil_to_tensor(picture)
        )
        size = (pixels.shape[1], pixels.shape[2])
        box = erasing_box(size, self.area, self.aspect, draws)
        if box is None:
            return picture
        erased = erase(pixels, box, self.fill, draws)
        altered: Picture = erased if is_tensor else functional.to_pil_image(erased)
        return altered
