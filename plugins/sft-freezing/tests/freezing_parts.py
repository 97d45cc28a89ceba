"""Components that the tests of freezing use: a backbone with batch norm, and two listeners."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from sft_engine import hookimpl
from sft_engine.testing.tiny import TinyNet, TinyText

COMPONENTS = {
    ("backbone", "test/normed"): "freezing_parts:Normed",
    ("extension", "test/watch"): "freezing_parts:Watch",
    ("extension", "test/frozenbelow"): "freezing_parts:FrozenBelow",
}


def clone(state):
    return {name: tensor.clone() for name, tensor in state.items()}


class NormedNet(TinyNet):
    """The tiny network with batch norm in its blocks."""

    def __init__(self, width, depth, outputs, dropout):
        super().__init__(width, depth, outputs, dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
            for _ in range(depth)
        )


class Normed(TinyText):
    """The tiny backbone with batch norm."""

    def __init__(self) -> None:
        super().__init__()

    def build(self, task):
        return NormedNet(self.width, self.depth, task.head.outputs, 0.5)


class Watch:
    """Keeps what the model was at each begin of a phase and at the end."""

    states: ClassVar[list] = []

    @hookimpl
    def sft_setup(self, run):
        Watch.states = [clone(run.model.state_dict())]

    @hookimpl(trylast=True)
    def sft_phase_end(self, run):
        Watch.states.append(clone(run.model.state_dict()))


class FrozenBelow:
    """A component that has frozen the embeddings for itself."""

    @hookimpl
    def sft_build_model(self, run):
        run.model.embeddings.weight.requires_grad_(False)
