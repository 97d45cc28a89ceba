"""A run of one step, with all that is needed to take the same step by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file

from sft_engine import hookimpl
from sft_engine.testing.runs import TINY, run_recipe

RATE = 0.1
ONE_STEP = [
    "train.steps=1",
    "train.clip_norm=0",
    "evaluation.test=false",
    "evaluation.every_epochs=0",
    "checkpoint.every_epochs=0",
    "checkpoint.best=last",
    "backbone.dtype=float64",
    "optimizer.use=sgd",
    "optimizer.momentum=0",
    f"optimizer.lr={RATE}",
    "schedule.use=constant",
]
SEEN: list[Seen] = []


@dataclass
class Seen:
    """What the spy saw of a run.

    Args:
        start: The model before training.
        batches: Every micro-batch.
        iterates: Weights after each step.
        run: The run itself.
        end: Weights that were saved.
        records: Loss terms by name, of the last step.
    """

    start: Any = None
    batches: list[Any] = field(default_factory=list)
    iterates: list[dict[str, torch.Tensor]] = field(default_factory=list)
    run: Any = None
    end: dict[str, torch.Tensor] = field(default_factory=dict)
    outcome: Any = None
    records: list[dict[str, Any]] = field(default_factory=list)

    def step(self, gradients: dict[str, torch.Tensor]) -> float:
        """Return how far the end is from a step of plain SGD from the start along gradients."""
        weights = dict(self.start.named_parameters())
        return max(
            (self.end[n] - (w - RATE * gradients[n])).abs().max().item() for n, w in weights.items()
        )


class Spy:
    """Takes notes. It stands first in the recipe, so others' changes of the start come before it."""

    @hookimpl
    def sft_build_model(self, run):
        SEEN.append(Seen(run=run))

    @hookimpl(trylast=True)
    def sft_setup(self, run):
        SEEN[-1].start = copy.deepcopy(run.model)

    @hookimpl
    def sft_batch(self, run, batch):
        SEEN[-1].batches.append(copy.deepcopy(batch))

    @hookimpl(trylast=True)
    def sft_step_end(self, run):
        weights = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        SEEN[-1].iterates.append(weights)

    @hookimpl
    def sft_log(self, run, record):
        SEEN[-1].records.append(record)


class Poison:
    """Makes the gradients of some steps large or NaN.

    Args:
        steps: Which.
        factor: On the gradients.
    """

    def __init__(self, steps: tuple[int, ...] = (), factor: float = 1e6) -> None:
        self.steps, self.factor = steps, factor

    @hookimpl
    def sft_gradients(self, run):
        if run.clock.step in self.steps:
            for parameter in run.model.parameters():
                parameter.grad.mul_(self.factor)


SPY = '[[extension]]\nuse = "test/spy"\n'


def run_one(folder, regularizers="", overrides=(), **options):
    """Run one step with regularizers, given as TOML, and return what was seen."""
    known = {("extension", "test/spy"): f"{__name__}:Spy"}
    outcome = run_recipe(
        folder, TINY + SPY + regularizers, [*ONE_STEP, *overrides], known, **options
    )
    SEEN[-1].end = load_file(folder / "model" / "model.safetensors")
    SEEN[-1].outcome = outcome
    return SEEN[-1]


def use(name, **options):
    """Return a regularizer as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    return "\n".join(["[[regularizer]]", f'use = "{name}"', *lines, ""])


def logits(model, ids, delta=0.0):
    """Run the tiny network by hand, with something added to its embeddings."""
    mask = (ids > 0).unsqueeze(-1).to(torch.float64)
    hidden = ((model.embeddings(ids) + delta) * mask).sum(1) / mask.sum(1).clamp(min=1)
    for block in model.blocks:
        hidden = hidden + block(hidden)
    return model.head(model.norm(hidden))


def gradients_of(model, loss):
    """Return the gradient of a scalar by parameter name."""
    names = [name for name, _ in model.named_parameters()]
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(model.parameters(), grads, strict=True)
    ]
    return dict(zip(names, filled, strict=True))
