"""The evaluation pipeline: from a picture to what a network takes.

Equal to timm's `create_transform(is_training=False)` and to torchvision's
`transforms.ImageClassification` of the same settings on PIL images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 - as everybody calls it

from sft_engine.images.decoding import decode

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TOP = 255
RGB = 3

CropMode = Literal["center", "squash", "border"]


@dataclass(frozen=True)
class Pipeline:
    """Resize, crop, scale to 0..1, normalise.

    Args:
        size: Height and width that the network takes.
        crop_pct: Share of the resized image that the crop keeps, by edge.
        resize: Length of the shorter edge before the crop, where it is not `size / crop_pct`;
            mode `center` only.
        crop_mode: `center` resizes the shorter edge and cuts out the middle; `squash` gives up the
            aspect ratio; `border` shows the whole image between borders in the mean colour.
        interpolation: `nearest`, `nearest-exact`, `bilinear`, `bicubic`, `box`, `hamming` or `lanczos`.
        mean: Of each channel, of values 0..1; one number stands for all.
        std: The same.
        channels: 3, or 1 for grey; three means are averaged for the latter.

    Raises:
        ValueError: settings that no image can be given.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    resize: int | None = None
    crop_mode: CropMode = "center"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, RGB):
            raise ValueError(f"channels = {self.channels}: images have 1 or 3")
        if min(self.size) < 1 or self.crop_pct <= 0 or min(self.std) <= 0:
            raise ValueError(f"size, crop_pct and std must be above 0: {self}")
        InterpolationMode(self.interpolation)  # raises ValueError, and lists what there is
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, self._per_channel(values, name))

    def _per_channel(self, values: tuple[float, ...], name: str) -> tuple[float, ...]:
        if len(values) == self.channels:
            return values
        if len(values) == 1:
            return values * self.channels
        if self.channels == 1:
            return (sum(values) / len(values),)
        raise ValueError(f"{name} has {len(values)} numbers for {self.channels} channels")

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Return float32 (channels, height, width), normalised.

        Args:
            image: A PIL image; or a uint8 tensor (c, h, w) whose geometry an augmentation has done: it
                is resized only if its size differs.
        """
        return self.normalize(self.pixels(image))

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """Return uint8 (channels, height, width): all that is costly, and a quarter of the bytes."""
        if isinstance(image, Tensor):
            return self._of_tensor(image)
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode not in ("L", "RGB"):
            image = decode(image)
        if image.mode != mode:
            image = image.convert(mode)
        # Not on tensors: PIL's resize of uint8 is what the weights were evaluated with.
        pixels: Tensor = F.pil_to_tensor(self._cropped(image))
        return pixels

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return float32 of uint8 pixels (..., channels, height, width): `(x / 255 - mean) / std`."""
        mean, std = self._moments
        return pixels.to(torch.float32).div_(TOP).sub_(mean).div_(std)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(each, dtype=torch.float32) for each in (self.mean, self.std))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def _of_tensor(self, image: Tensor) -> Tensor:
        if image.dtype != torch.uint8 or image.ndim != RGB or image.shape[0] not in (1, RGB):
            raise ValueError(
                f"found a tensor of {image.dtype} {tuple(image.shape)}, allowed: uint8 (1|3, h, w)"
            )
        if tuple(image.shape[1:]) != self.size:
            mode = InterpolationMode(self.interpolation)
            image = F.resize(image, list(self.size), mode, antialias=True)
        if image.shape[0] == self.channels:
            return image
        if self.channels == 1:
            grey: Tensor = F.rgb_to_grayscale(image)
            return grey
        return image.expand(RGB, -1, -1)

    # --- geometry --------------------------------------------------------------------------------

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop_mode == "border":
            return self._between_borders(image)
        resized = F.resize(image, self._resized(image), InterpolationMode(self.interpolation))
        cropped: Image.Image = F.center_crop(resized, list(self.size))
        return cropped

    def _scaled(self) -> list[int]:
        """Return height and width of which the crop keeps `crop_pct`."""
        return [math.floor(edge / self.crop_pct) for edge in self.size]

    def _resized(self, image: Image.Image) -> list[int]:
        """Return what torchvision calls a size: the shorter edge alone, or both."""
        if self.crop_mode == "squash":
            return self._scaled()
        if self.resize is not None:
            return [self.resize]
        height, width = self._scaled()
        if height == width:
            return [height]
        ratio = min(image.height / height, image.width / width)
        return [round(image.height / ratio), round(image.width / ratio)]

    def _between_borders(self, image: Image.Image) -> Image.Image:
        height, width = self._scaled()
        ratio = max(image.height / height, image.width / width)
        whole = [max(1, round(image.height / ratio)), max(1, round(image.width / ratio))]
        image = F.resize(image, whole, InterpolationMode(self.interpolation))
        missing = [max(0, edge - has) for edge, has in zip(self.size, whole, strict=True)]
        top, left = missing[0] // 2, missing[1] // 2
        padding = [left, top, missing[1] - left, missing[0] - top]
        fill = [float(round(TOP * value)) for value in self.mean]
        padded: Image.Image = F.pad(image, padding, fill=fill)
        cropped: Image.Image = F.center_crop(padded, list(self.size))
        return cropped
