"""Probes of images: rotation, translation, occlusion, resolution, JPEG; functions on PIL images first."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Le, MinLen

from sft_probes.severity import RowProbe

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

IMAGE = "image"
GREY = 127
BEST = 100
"""JPEG's quality from which a severity is counted."""

Shares = Annotated[tuple[Annotated[float, Ge(0), Le(1)], ...], MinLen(1)]


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Return a picture turned about its middle, counter-clockwise; what was outside is black.

    With Engstrom et al. 2019, "Exploring the Landscape of Spatial Robustness", section 3.
    """
    from PIL import Image as Picture

    return image.rotate(degrees, resample=Picture.Resampling.BILINEAR)


def translated(image: Image.Image, right: float, down: float) -> Image.Image:
    """Return a picture moved by these shares of its width and height; what was outside is black."""
    from PIL import Image as Picture

    shift = (1, 0, -round(right * image.width), 0, 1, -round(down * image.height))
    return image.transform(image.size, Picture.Transform.AFFINE, shift)


def occluded(image: Image.Image, share: float, right: float, down: float) -> Image.Image:
    """Return a picture of which a grey rectangle of its own proportions hides a share of the area.

    Args:
        image: Any.
        share: Of the area, 0..1.
        right: Where the rectangle is: 0 at the left border, 1 at the right one.
        down: 0 at the upper border, 1 at the lower one.
    """
    width, height = (round(edge * math.sqrt(share)) for edge in image.size)
    changed = image.copy()
    place = (round(right * (image.width - width)), round(down * (image.height - height)))
    fill = GREY if image.mode == "L" else (GREY,) * 3
    changed.paste(fill, (*place, place[0] + width, place[1] + height))
    return changed


def coarser(image: Image.Image, factor: float) -> Image.Image:
    """Return a picture made smaller by this factor, at least one pixel, and large again."""
    from PIL import Image as Picture

    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    reduced = image.resize(small, Picture.Resampling.BOX)
    return reduced.resize(image.size, Picture.Resampling.BILINEAR)


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """Return a picture as JPEG of this quality (1..100) leaves it."""
    from PIL import Image as Picture

    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    with Picture.open(io.BytesIO(file.getvalue())) as opened:
        return opened.convert(image.mode)


class PictureProbe(RowProbe):
    """Changes the picture of a row; a subclass says how, in `alter`."""

    inputs: ClassVar[frozenset[str]] = frozenset({IMAGE})

    def alter(self, image: Image.Image, severity: Any, draws: np.random.Generator) -> Any:
        """Return the changed picture: a PIL image, or uint8 (c, h, w) that needs no crop any more."""
        raise NotImplementedError

    def disturb(
        self, row: dict[str, Any], severity: Any, draws: np.random.Generator
    ) -> dict[str, Any]:
        """Change the picture of the row."""
        from sft_engine.images import decode

        if severity:
            row[IMAGE] = self.alter(decode(row[IMAGE]), severity, draws)
        return row

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the picture."""
        return {IMAGE: picture_of(row[IMAGE])}


def picture_of(value: Any) -> str:
    """Return a small picture for a report, of what a row holds: also of uint8 (c, h, w)."""
    import torch
    from torchvision.transforms.v2 import functional

    from sft_engine.reporting.shown_examples import thumbnail

    return thumbnail(functional.to_pil_image(value) if isinstance(value, torch.Tensor) else value)


class Rotation(PictureProbe):
    """Turn images about their middle, each to a side that is drawn; corners become black.

    Args:
        severities: Angles in degrees.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the sides.
    """

    title = "Rotation"
    axis = "degrees"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(0), Le(180)], ...], MinLen(1)] = (
            5.0,
            15.0,
            30.0,
        ),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(self, image: Image.Image, severity: float, draws: np.random.Generator) -> Image.Image:
        """Turn it."""
        return rotated(image, severity if draws.random() < 1 / 2 else -severity)


class Translation(PictureProbe):
    """Move images in a direction that is drawn; what comes in from outside is black.

    Args:
        severities: Distances, as shares of width and height.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the directions.
    """

    title = "Translation"
    axis = "shift as a share of the edge"

    def __init__(
        self,
        severities: Shares = (0.05, 0.1, 0.2),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(self, image: Image.Image, severity: float, draws: np.random.Generator) -> Image.Image:
        """Move it."""
        angle = 2 * math.pi * draws.random()
        return translated(image, severity * math.cos(angle), severity * math.sin(angle))


class Occlusion(PictureProbe):
    """Hide a part of images behind a grey rectangle at a place that is drawn; a larger one hides more there.

    Args:
        severities: Shares of the area.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the places.
    """

    title = "Occlusion"
    axis = "share of the image hidden"

    def __init__(
        self,
        severities: Shares = (0.1, 0.25, 0.5),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(self, image: Image.Image, severity: float, draws: np.random.Generator) -> Image.Image:
        """Hide a part of it."""
        return occluded(image, severity, draws.random(), draws.random())


class Resolution(PictureProbe):
    """Make images small and large again, so that detail is lost.

    Args:
        severities: Factors by which width and height are divided; 1 loses nothing.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Resolution"
    axis = "resolution divided by"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(1)], ...], MinLen(1)] = (2.0, 4.0, 8.0),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(
        self,
        image: Image.Image,
        severity: float,
        draws: np.random.Generator,  # noqa: ARG002 - contract
    ) -> Image.Image:
        """Lose detail."""
        return coarser(image, severity)


class Jpeg(PictureProbe):
    """Compress images as JPEG.

    Args:
        severities: 100 less the quality: 90 is quality 10.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "JPEG compression"
    axis = "100 less JPEG quality"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[int, Ge(0), Le(99)], ...], MinLen(1)] = (50, 80, 95),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(
        self,
        image: Image.Image,
        severity: int,
        draws: np.random.Generator,  # noqa: ARG002 - contract
    ) -> Image.Image:
        """Compress it."""
        return recompressed(image, BEST - severity)
