"""The work of overhead.py: the same tiny model, data and optimizer settings for every variant."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bench.measurement import Timer, Watcher, watched


@dataclass
class OverheadWork:
    """A model so small that the time of a step is the loop's own: MLP 32-64-2, batch 16.

    One epoch of `steps` steps: AdamW, learning rate falling linearly to 0, gradient norm
    clipped at 1.
    """

    steps: int
    seed: int = 0
    timer: Timer = field(default_factory=Timer)
    watchers: list[Watcher] = field(default_factory=list)
    batch_size: int = 16
    width: int = 32
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.inputs = torch.randn(self.batch_size * self.steps, self.width, generator=draw)
        self.labels = self.label(self.inputs)
        torch.manual_seed(self.seed)

    @staticmethod
    def label(inputs: Tensor) -> Tensor:
        """Class of each row, (n, width) -> (n,): 1 where its sum is positive."""
        return (inputs.sum(1) > 0).long()

    def dataset(self) -> TensorDataset:
        """The training examples as (inputs, label) pairs."""
        return TensorDataset(self.inputs, self.labels)

    def build_model(self) -> nn.Sequential:
        """The model with its first weights, watched by the timer and the watchers."""
        torch.manual_seed(self.seed)
        model = nn.Sequential(nn.Linear(self.width, 64), nn.ReLU(), nn.Linear(64, 2))
        return watched(model, [self.timer.watch, *self.watchers])
