"""A tiny convolutional network and tiny pictures: image runs in milliseconds, no network, no files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Lt
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sft_engine import order
from sft_engine.components import Example, LayerGroup, Resolve, Task
from sft_engine.images import ImageExamples, Pipeline, encode_images, stack_images


class TinyPictures:
    """Noise with a bright half: the label says which, `left` or `right`.

    Args:
        examples: How many.
        size: Height and width.
        seed: Of the draws.
    """

    def __init__(
        self,
        examples: Annotated[int, Gt(0)] = 64,
        size: Annotated[int, Ge(2)] = 20,
        seed: int = 0,
    ) -> None:
        self.examples, self.size, self.seed = examples, size, seed

    def load(self) -> dict[str, Dataset]:
        """Return one split, `train`: `image`, the bytes of a PNG file, and `label`."""
        labels = ["left" if i % 2 else "right" for i in range(self.examples)]
        images = [self._png(i, label) for i, label in enumerate(labels)]
        return {"train": Dataset.from_dict({"image": images, "label": labels})}

    def _png(self, index: int, label: str) -> bytes:
        draws = order.generator(self.seed, index)
        pixels = draws.integers(0, 128, (self.size, self.size, 3), dtype=np.uint8)
        half = self.size // 2
        pixels[:, slice(0, half) if label == "left" else slice(half, None)] += 100
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        return file.getvalue()


class TinyConvNet(nn.Module):
    """Two convolutions with batch norm, mean over four quarters, dropout, linear head."""

    def __init__(self, channels: int, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.stem = _block(channels, width)
        self.block = _block(width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (n, outputs) of images (n, channels, height, width)."""
        hidden = nn.functional.adaptive_avg_pool2d(self.block(self.stem(image)), 2)
        logits: Tensor = self.head(self.dropout(hidden.flatten(1)))
        return logits


def _block(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


class TinyImage:
    """An image backbone of a few hundred parameters, to test with.

    Args:
        name: Folder of saved weights; `random` for random ones.
        size: Height and width that it takes.
        channels: 3, or 1 for grey images.
        width: Channels of the convolutions.
        dropout: Share of the last features dropped in training.
    """

    accepts = frozenset({"image"})

    def __init__(
        self,
        name: str = "random",
        size: Annotated[int, Ge(4)] = 16,
        channels: Annotated[int, Ge(1)] = 3,
        width: Annotated[int, Gt(0)] = 6,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        self.name, self.size, self.channels = name, size, channels
        self.width, self.dropout = width, dropout
        self.folder: Path | None = None

    def open(self, resolve: Resolve) -> None:
        """Look where the weights are, and make the pipeline."""
        folder = Path(resolve(self.name))
        self.folder = folder if (folder / "model.safetensors").exists() else None
        self.pipeline = Pipeline((self.size, self.size), crop_pct=1.0, channels=self.channels)

    def encode(self, rows: Dataset, task: Task) -> ImageExamples:
        """Encode a split."""
        return ImageExamples(rows, self.pipeline, task.target)

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Encode some rows."""
        return encode_images(rows, self.pipeline, task.target)

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Stack images."""
        return stack_images(examples)

    def build(self, task: Task) -> nn.Module:
        """Build the network, from the folder if there is one."""
        net = TinyConvNet(self.channels, self.width, task.head.outputs, self.dropout)
        if self.folder is not None:
            net.load_state_dict(load_file(self.folder / "model.safetensors"))
        return net

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the network."""
        return model(inputs["image"])

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return stem, block, head."""
        names = [name for name, _ in model.named_parameters()]
        return [
            LayerGroup(group, tuple(name for name in names if name.startswith(f"{group}.")))
            for group in ("stem", "block", "head")
        ]

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:  # noqa: ARG002 - contract
        """Write model.safetensors."""
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
