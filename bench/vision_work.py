"""The work of vision.py: the same network, pictures and optimizer settings for every variant."""

from __future__ import annotations

from dataclasses import dataclass, field

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bench.measurement import Timer, Watcher, watched

MODELS = {"resnet18": "resnet18", "lite0": "efficientnet_lite0"}
CHANNELS = 3
SIGNAL = 0.25


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Noise (count, 3, size, size), as normalised pictures are; one channel of each is brighter."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, CHANNELS, size, size, generator=draw)
    brighter = torch.randint(CHANNELS, (count,), generator=draw)
    images[torch.arange(count), brighter] += SIGNAL
    return images


def label(images: Tensor) -> Tensor:
    """Class of each picture, (n, 3, h, w) -> (n,): the channel that is brightest."""
    return images.mean((2, 3)).argmax(1)


@dataclass
class VisionWork:
    """Train every weight of a convolutional network, random ones at first, for one epoch.

    AdamW, learning rate falling linearly to 0, gradient norm clipped at 1. Pictures lie in memory,
    decoded and normalised: what is compared is the training, not a decoder.

    The attributes are those of `OverheadWork`, so that its variants do this work too.
    """

    model: str = "resnet18"
    steps: int = 24
    seed: int = 0
    timer: Timer = field(default_factory=Timer)
    watchers: list[Watcher] = field(default_factory=list)
    batch_size: int = 32
    size: int = 96
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        self.inputs = pictures(self.batch_size * self.steps, self.size, seed=2 * self.seed)
        self.labels = label(self.inputs)
        torch.manual_seed(self.seed)

    def dataset(self) -> TensorDataset:
        """The training examples as (picture, label) pairs."""
        return TensorDataset(self.inputs, self.labels)

    def build_model(self) -> nn.Module:
        """The network with its first weights, watched by the timer and the watchers."""
        torch.manual_seed(self.seed)
        model: nn.Module = timm.create_model(MODELS[self.model], num_classes=CHANNELS)
        return watched(model, [self.timer.watch, *self.watchers])


@torch.no_grad()
def accuracy(model: nn.Module, work: VisionWork, count: int = 128) -> float:
    """Share of right answers on other pictures, in fp32 and evaluation mode."""
    images = pictures(count, work.size, seed=2 * work.seed + 1)
    found = model.eval()(images).argmax(1)
    return float((found == label(images)).float().mean())
