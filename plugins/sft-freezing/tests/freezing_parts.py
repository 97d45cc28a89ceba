"""Components that the tests of freezing use: a backbone with batch norm, and two listeners."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from sft_engine import hookimpl
from sft_engine.testing.tiny import TinyNet, TinyText

COMPONENTS = {
    ("backbone", "test/normed"): "freezing_parts:Normed",
    ("extension", "test/watch"): "freezing_parts:Watch",
    ("extension", "test/note"): "freezing_parts:Note",
    ("extension", "test/end"): "freezing_parts:End",
    ("extension", "test/frozenbelow"): "freezing_parts:FrozenBelow",
}


def clone(state):
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


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


class Note:
    """Keeps, of each step, what trained and how fast; and of the first one, what it did.

    `groups` has the layer groups that train, as indices, `rates` the learning rate of each.
    """

    groups: ClassVar[list] = []
    rates: ClassVar[list] = []
    steps: ClassVar[list] = []
    group_of: ClassVar[dict] = {}

    @hookimpl
    def sft_setup(self, run):
        Note.groups, Note.rates, Note.steps = [], [], []
        Note.group_of = {n: g.name for g in run.layer_groups for n in g.parameters}

    @hookimpl
    def sft_step_verdict(self, run):
        parameters = dict(run.model.named_parameters())
        trains = [
            index
            for index, group in enumerate(run.layer_groups)
            if any(parameters[name].grad is not None for name in group.parameters)
        ]
        rates = {
            run.group_of(name): group["lr"]
            for group, of_recipe in zip(
                run.optimizer.param_groups, run.parameter_groups, strict=True
            )
            for name in of_recipe.names
        }
        Note.groups.append(trains)
        Note.rates.append([rates[index] for index in range(len(run.layer_groups))])
        gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        Note.steps.append({"weights": clone(parameters), "gradients": gradients})

    @hookimpl
    def sft_step_end(self, run):
        Note.steps[-1]["after"] = clone(dict(run.model.named_parameters()))


class End:
    """Keeps the run as it has ended."""

    run: ClassVar = None

    @hookimpl
    def sft_teardown(self, run):
        End.run = run


class FrozenBelow:
    """A component that has frozen the embeddings for itself."""

    @hookimpl
    def sft_build_model(self, run):
        run.model.embeddings.weight.requires_grad_(False)
