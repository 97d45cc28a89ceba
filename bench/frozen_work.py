"""The work of frozen.py: a frozen ResNet-50 with a new head, as the articles do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from bench.measurement import Timer, Watcher, watched

HEAD = "fc"
TRAINS = {
    "head": ("fc.*",),
    "block": ("layer4.2.*", "fc.*"),
    "stage": ("layer4.*", "fc.*"),
    "half": ("layer3.*", "layer4.*", "fc.*"),
    "most": ("layer2.*", "layer3.*", "layer4.*", "fc.*"),
}
"""How much of the network trains, by a name: the head, the last block, one, two or three stages with it."""
CLASSES = 2


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Noise (count, 3, size, size); half of the pictures have stripes."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=draw)
    images[::2, :, :, ::4] = 1.0
    return images


@dataclass
class FrozenWork:
    """Train a new linear head on a frozen ResNet-50 with random weights: SGD, momentum 0.9.

    Speed does not depend on the weights. Examples are tensors in memory, so that no variant waits for a
    decoder.
    """

    count: int = 128
    size: int = 128
    epochs: int = 10
    seed: int = 0
    timer: Timer = field(default_factory=Timer)
    watchers: list[Watcher] = field(default_factory=list)
    batch_size: int = 32
    learning_rate: float = 1e-3
    momentum: float = 0.9
    trains: str = "head"

    def __post_init__(self) -> None:
        self.inputs = pictures(self.count, self.size, self.seed)
        self.labels = (torch.arange(self.count) + 1) % CLASSES
        torch.manual_seed(self.seed)

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.epochs * -(-self.count // self.batch_size)

    def dataset(self) -> TensorDataset:
        """The training examples as (inputs, label) pairs."""
        return TensorDataset(self.inputs, self.labels)

    def build_model(self, frozen: bool = True) -> nn.Module:
        """The model with its first weights; all but what trains is frozen."""
        from torchvision.models import resnet50

        torch.manual_seed(self.seed)
        model: nn.Module = resnet50(weights=None, num_classes=CLASSES)
        for name, parameter in model.named_parameters():
            trains = any(fnmatch(name, pattern) for pattern in TRAINS[self.trains])
            parameter.requires_grad_(not frozen or trains)
        return watched(model, [self.timer.watch, *self.watchers])


def trunk_of(model: nn.Module) -> nn.Sequential:
    """Everything before the head: (n, 3, h, w) -> (n, 2048)."""
    children = [child for name, child in model.named_children() if name != HEAD]
    return nn.Sequential(*children, nn.Flatten(1))


@torch.no_grad()
def final_loss(model: nn.Module, work: FrozenWork) -> float:
    """Mean cross-entropy on the training examples, in evaluation mode."""
    model.eval()
    parts = zip(work.inputs.split(32), work.labels.split(32), strict=True)
    return sum(cross_entropy(model(x), y, reduction="sum").item() for x, y in parts) / work.count
