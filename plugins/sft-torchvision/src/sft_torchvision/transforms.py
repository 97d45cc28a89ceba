"""Training transforms: random crop and flip, and any other transform of torchvision by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from sft_engine import RecipeError, hookimpl
from sft_engine.sentences import suggest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sft_engine.flow import Run, Split
    from sft_engine.images import Pipeline

ROLE = "image"
NESTED = ("RandomApply", "RandomChoice", "RandomOrder", "Compose")
"""Transforms that take others."""
UNFIT = {
    "MixUp": "it mixes images of a batch: use an augmentation of batches",
    "CutMix": "it mixes images of a batch: use an augmentation of batches",
    "Lambda": "it takes a function, which no recipe can hold",
    "Normalize": "the backbone normalises",
    "ToDtype": "the backbone scales and normalises",
    "FiveCrop": "it makes several images of one",
    "TenCrop": "it makes several images of one",
}
_COLOURS = 3


class ImageTransforms:
    """Changes training images at random: a crop of the input size, a flip, and further steps.

    Args:
        scale: Least and largest share of the image's area that the crop keeps.
        ratio: Least and largest ratio of width to height of the crop.
        crop: Crop at random; false keeps the crop of evaluation.
        flip: Probability of a horizontal flip; 0 where left and right differ in meaning.
        steps: Further transforms of torchvision.transforms.v2 in their order, each a table with `name`
            and its arguments, such as `{ name = "ColorJitter", brightness = 0.4 }`. They get the cropped
            image as uint8 tensor (channels, height, width).
        until: Off in epochs that begin after this share of the run: images are then those of evaluation.
    """

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.35, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        crop: bool = True,
        flip: Annotated[float, Ge(0), Le(1)] = 0.5,
        steps: tuple[dict[str, Any], ...] = (),
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        self.scale = scale
        self.ratio = ratio
        self.crop = crop
        self.flip = flip
        self.steps = steps
        self.until = until
        self.active = True

    def check(self) -> None:
        """Make sure that every step exists and takes its arguments. Raises RecipeError."""
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise RecipeError(
                f"[[augmentation]] scale = [{low:g}, {high:g}]: allowed are two shares above 0 and up to "
                "1, the smaller one first, such as [0.35, 1.0]."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise RecipeError(
                f"[[augmentation]] ratio = {list(self.ratio)}: allowed are two numbers above 0, the "
                "smaller one first, such as [0.75, 1.33]."
            )
        for step in self.steps:
            make_step(step)

    @hookimpl
    def sft_build_data(self, run: Run, split: str, data: Split) -> None:
        """Let the images of all splits that train pass through the transforms."""
        pipeline = getattr(run.backbone, "pipeline", None)
        if pipeline is None:
            raise RecipeError(
                '[[augmentation]] use = "image-transforms" changes images, and this backbone takes none: '
                'choose a backbone of images, such as "timm", or leave it out.'
            )
        if split not in ("validation", "test") and self.until > 0:
            data.transforms.append(Transform(self, pipeline))

    @hookimpl
    def sft_epoch_start(self, run: Run) -> None:
        """Switch off in an epoch that begins at `until` or later; not in one: workers fetch ahead."""
        clock = run.clock
        self.active = (clock.step - clock.window) / clock.total_steps < self.until


class Transform:
    """The row transform of one backbone.

    Args:
        options: What to do.
        pipeline: Says size, channels and interpolation.
    """

    def __init__(self, options: ImageTransforms, pipeline: Pipeline) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.pipeline = pipeline
        self._options = options
        self._crop: Callable[[Any], Any] | None = None
        if options.crop:
            self._crop = v2.RandomResizedCrop(
                pipeline.size,
                scale=options.scale,
                ratio=options.ratio,
                interpolation=InterpolationMode(pipeline.interpolation),
            )
        flip = [v2.RandomHorizontalFlip(options.flip)] if options.flip else []
        self._steps: list[Callable[[Any], Any]] = [*flip, *map(make_step, options.steps)]

    def __call__(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Return the row with its image as uint8 tensor (channels, height, width).

        Args:
            row: With `image`: anything that `sft_engine.images.decode` takes, or such a tensor.
            draws: The only source of randomness; torch's own random state stays as it is.
        """
        import torch

        if not self._options.active:
            return row
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPUs as well.
            torch.default_generator.manual_seed(int(draws.integers(2**63)))
            image = self._cropped(row[ROLE])
            for step in self._steps:
                image = step(image)
        return {**row, ROLE: self._checked(image)}

    def _cropped(self, value: Any) -> Tensor:
        import torch
        from torchvision.transforms.v2 import functional

        from sft_engine.images import decode

        picture = value if isinstance(value, torch.Tensor) else decode(value)
        if self._crop is None:
            return self.pipeline.pixels(picture)
        if isinstance(picture, torch.Tensor):
            return self.pipeline.pixels(self._crop(picture))
        mode = "RGB" if self.pipeline.channels == _COLOURS else "L"
        pixels: Tensor = functional.pil_to_tensor(self._crop(picture.convert(mode)))
        return pixels

    def _checked(self, image: Any) -> Tensor:
        import torch

        if (
            isinstance(image, torch.Tensor)
            and image.dtype == torch.uint8
            and image.ndim == _COLOURS
        ):
            return image
        found = getattr(image, "dtype", type(image).__name__)
        names = ", ".join(type(step).__name__ for step in self._steps)
        raise RecipeError(
            f"[[augmentation]] steps ({names}) make {found} of an image: they must leave a uint8 tensor "
            "(channels, height, width), since the backbone scales and normalises; take out the one that "
            "converts."
        )


def make_step(table: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Make a transform of torchvision from a table of a recipe.

    Args:
        table: `name` and arguments; `interpolation` and `policy` by their names, `transforms` as a list of
            such tables.

    Raises:
        RecipeError: there is no such transform, it does not suit, or it takes other arguments.
    """
    from torchvision.transforms import v2

    arguments = dict(table)
    name = arguments.pop("name", None)
    known = [each for each in dir(v2) if isinstance(getattr(v2, each), type)]
    fit = [each for each in known if issubclass(getattr(v2, each), v2.Transform)]
    if name in UNFIT:
        raise _complain(table, f"does not belong here: {UNFIT[name]}")
    if name not in fit:
        found = "no name" if name is None else f'"{name}"'
        hint = suggest(str(name), fit) or "see torchvision.transforms.v2"
        raise _complain(table, f"has {found}, which is no transform of torchvision: {hint}")
    try:
        step: Callable[[Any], Any] = getattr(v2, name)(**_arguments(name, arguments))
    except (TypeError, ValueError) as error:
        said = str(error).splitlines()[0].replace("__init__()", name)[:200]
        raise _complain(table, f"cannot be made ({said})") from error
    return step


def _arguments(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

    ready = dict(table)
    if isinstance(ready.get("interpolation"), str):
        ready["interpolation"] = InterpolationMode(ready["interpolation"])
    if isinstance(ready.get("policy"), str):
        ready["policy"] = AutoAugmentPolicy(ready["policy"])
    if name in NESTED and isinstance(ready.get("transforms"), Sequence):
        ready["transforms"] = [make_step(step) for step in ready["transforms"]]
    return ready


def _complain(table: Mapping[str, Any], what: str) -> RecipeError:
    return RecipeError(f"[[augmentation]] steps: {dict(table)} {what}.")
