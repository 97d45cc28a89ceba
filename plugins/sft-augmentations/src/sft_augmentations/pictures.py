"""What all augmentations of images have in common: what they are given, and where they draw from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sft_augmentations.rows import RowAugmentation
from sft_engine import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from sft_engine import Split

    Picture = Image | Tensor
    """A PIL image of mode RGB or L, or a uint8 tensor (1|3, height, width)."""

IMAGE = "image"


@contextmanager
def torch_draws(draws: np.random.Generator) -> Iterator[None]:
    """Let what draws from torch's global generator of the CPU draw by a generator of numpy.

    Afterwards torch's generator is where it was.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(draws.integers(1 << 63)))
    try:
        yield
    finally:
        generator.set_state(state)


class ImageAugmentation(RowAugmentation):
    """Changes the image of a row; a subclass says how, in `alter`."""

    def alter(self, picture: Picture, draws: np.random.Generator) -> Picture:
        """Return the changed image, of the same kind as the one given."""
        raise NotImplementedError

    def prepare(self, data: Split) -> None:
        """Raise RecipeError if there are no images."""
        if IMAGE not in data.rows.column_names:
            raise RecipeError(
                "an augmentation of images changes the column 'image', which the training split has not "
                f"(found: {', '.join(data.rows.column_names)}); remove the augmentation, or take a task "
                "and data with images"
            )

    def change(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Decode the image, unless an augmentation before has, and change it."""
        from sft_engine.images import decode

        value = row[IMAGE]
        row[IMAGE] = self.alter(value if isinstance(value, Tensor) else decode(value), draws)
        return row
