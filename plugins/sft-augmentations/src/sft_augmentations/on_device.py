"""Transforms of kornia on whole batches of images, where the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Le

from sft_augmentations.batches import BatchAugmentation
from sft_engine import RecipeError, hookimpl, order

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Batch, Run

IMAGE = "image"
_KEY = order.name_key("kornia")
_MASK = (1 << 63) - 1


class Kornia(BatchAugmentation):
    """Apply transforms of kornia.augmentation to batches of images, on the device of the model.

    They get values from 0 to 1, before the normalisation of the backbone, which is done again afterwards.
    What they draw depends on the seed, the epoch and the examples of the micro-batch together: another
    `train.micro_batch_size` or number of processes draws otherwise.

    Args:
        transforms: In their order, each a table with `name` and its arguments, such as
            `{ name = "RandomHorizontalFlip", p = 0.5 }`.
        until: Off from this share of the run on.
    """

    def __init__(
        self,
        transforms: tuple[dict[str, Any], ...] = (),
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(until)
        self.transforms = transforms
        self._made: list[Callable[[Tensor], Tensor]] = []

    @property
    def effective(self) -> bool:
        """Whether any transform can act."""
        return super().effective and any(each.get("p", 1) for each in self.transforms)

    def check(self) -> None:
        """Make every transform. Raises RecipeError if one does not take its arguments."""
        self._made = [made(each) for each in self.transforms]

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Raise RecipeError if there are no images that a pipeline has normalised."""
        if self.effective and not hasattr(getattr(run.backbone, "pipeline", None), "mean"):
            raise RecipeError(
                '[[augmentation]] use = "kornia" changes images, and this backbone takes none: choose a '
                'backbone of images, such as "timm", or leave it out'
            )

    def change(self, run: Run, batch: Batch, *, again: bool) -> None:
        """Change the images of a batch."""
        if again:
            return
        images = batch.inputs[IMAGE]
        seed = order.mix(run.seeds.noise, run.clock.epoch, *batch.ids, start=_KEY)
        with seeded(images.device, seed), torch.no_grad():
            batch.inputs[IMAGE] = self.changed(images, run.backbone.pipeline)  # type: ignore[attr-defined]

    def changed(self, images: Tensor, pipeline: Any) -> Tensor:
        """Return normalised images (n, c, h, w) changed; draws from torch's global generators.

        Raises RecipeError if a transform changes their shape.
        """
        mean, std = (
            images.new_tensor(each).view(1, -1, 1, 1) for each in (pipeline.mean, pipeline.std)
        )
        plain = images * std + mean
        for table, transform in zip(self.transforms, self._made, strict=True):
            plain = transform(plain)
            if plain.shape != images.shape:
                raise complain(
                    table,
                    f"makes {tuple(plain.shape)} of {tuple(images.shape)}: the model takes one size, leave "
                    "it out or give it that",
                )
        # An empty tensor of the same strides: channels may be innermost.
        return torch.empty_like(images).copy_((plain - mean) / std)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of a device; afterwards they are where they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed all GPUs for good.
        torch.default_generator.manual_seed(seed & _MASK)
        if devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed & _MASK)
        yield


def made(table: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """Make a transform of kornia from a table of a recipe.

    Lists become tuples, as kornia asks.

    Raises:
        RecipeError: kornia is not there, has no such transform, or it takes other arguments.
    """
    from sft_augmentations.libraries import kornia_problem

    problem = kornia_problem(table)
    if problem:
        raise complain(table, f"{problem[0]}: {problem[1]}")
    import kornia.augmentation

    arguments = {key: as_tuple(value) for key, value in table.items() if key != "name"}
    try:
        transform: Callable[[Tensor], Tensor] = getattr(kornia.augmentation, table["name"])(
            **arguments
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise complain(table, f"cannot be made ({said}): correct its arguments") from error
    return transform


def as_tuple(value: Any) -> Any:
    """Return a value with its lists as tuples."""
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value


def complain(table: Mapping[str, Any], what: str) -> RecipeError:
    """Return the error that says what is wrong with a transform."""
    return RecipeError(f"[[augmentation]] kornia: transforms: {dict(table)} {what}.")
