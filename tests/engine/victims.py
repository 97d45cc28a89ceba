"""Components that failure tests name in recipes, and the plugin that offers them to child processes.

They bring a failure about at a named moment of a run: the tests do not wait for one.
"""

from __future__ import annotations

import functools
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sft_engine import Action, LossTerm, Verdict, hookimpl

NAMES = ("Drift", "Signaller", "Poison", "Healer", "Hungry")
COMPONENTS = {("extension", f"test/{name.lower()}"): f"victims:{name}" for name in NAMES}


@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "Tiny network.")
    for (kind, name), target in COMPONENTS.items():
        catalog.add(kind, name, target, "A component of a test.")


class Drift:
    """State of every kind: weights averaged, numbers counted, all generators used.

    Args:
        decay: Of the average.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self.drawn: list[float] = []

    @hookimpl
    def sft_step_end(self, run):
        for name, weight in run.model.named_parameters():
            old = self.average.get(name, weight.detach().clone())
            self.average[name] = self.decay * old + (1 - self.decay) * weight.detach()
        draws = (random.random(), np.random.rand(), torch.rand(()).item())
        self.drawn = [*self.drawn[-8:], sum(draws)]

    @hookimpl
    def sft_batch(self, run, batch):
        keep = torch.rand(batch.inputs["ids"].shape) > 0.1
        batch.inputs["ids"] = batch.inputs["ids"] * keep

    def state_dict(self):
        return {"average": self.average, "drawn": self.drawn, "pair": (1, {2: np.arange(3)})}

    def load_state_dict(self, state):
        assert state["pair"][1][2].tolist() == [0, 1, 2]
        self.average, self.drawn = state["average"], state["drawn"]


class Signaller:
    """Sends signals to its own process at a named moment.

    Args:
        when: Name of the moment: `build`, `setup`, `step`, `batch`, `evaluation`, `saving`, `final` (the
            final evaluation), `report`.
        step: The step at which, for those in training.
        number: Name of the signal.
        times: How many.
        once: A file that is made; while it is there, nothing is sent.
    """

    def __init__(
        self,
        when: str = "step",
        step: int = 2,
        number: str = "SIGTERM",
        times: int = 1,
        once: str = "",
    ) -> None:
        self.when, self.step, self.number = when, step, number
        self.times, self.once = times, once
        self.now = 0

    def send(self, moment: str, step: int = -1) -> None:
        if moment != self.when or step not in (-1, self.step):
            return
        if self.once:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        for _ in range(self.times):
            os.kill(os.getpid(), getattr(signal, self.number))

    @hookimpl
    def sft_build_data(self, run, split, data):
        if split == "train":
            self.send("build")

    @hookimpl
    def sft_setup(self, run):
        self.send("setup")

    @hookimpl
    def sft_step_start(self, run):
        self.now = run.clock.step
        self.send("step", run.clock.step)

    @hookimpl
    def sft_batch(self, run, batch):
        self.send("batch", run.clock.step)

    @hookimpl
    def sft_step_end(self, run):
        self.now = run.clock.step + 1

    @hookimpl
    def sft_eval_batch(self, run, view, batch, outputs):
        if run.evaluating == "test":
            self.send("final")
        else:
            self.send("evaluation", run.clock.step)

    @hookimpl
    def sft_report(self, run, report):
        self.send("report")

    def state_dict(self):
        self.send("saving", self.now)
        return {}

    def load_state_dict(self, state):
        pass


class Poison:
    """Makes the loss something else than a number at some steps.

    Args:
        at: First such step.
        until: First step at which it is a number again.
        value: What it becomes: `nan`, `inf`.
        what: `loss`, or `weight` for a weight that a step spoils though its gradient was finite.
    """

    def __init__(
        self, at: int = 3, until: int = 4, value: float = float("nan"), what: str = "loss"
    ) -> None:
        self.at, self.until, self.value, self.what = at, until, value, what

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        if self.what != "loss" or not self.at <= run.clock.step < self.until:
            return []
        return [LossTerm("poison", outputs.sum() * self.value)]

    @hookimpl
    def sft_step_end(self, run):
        if self.what == "weight" and run.clock.step == self.at:
            with torch.no_grad():
                run.model.head.bias[0] = self.value


class Healer:
    """Rolls back, or skips, where the gradient is not finite.

    Args:
        action: Name of the action.
    """

    class capabilities:  # noqa: N801
        rolls_back = True
        unused_parameters = False

    def __init__(self, action: str = "ROLL_BACK") -> None:
        self.action = action

    @hookimpl
    def sft_step_verdict(self, run, grad_norm):
        if torch.isfinite(grad_norm):
            return None
        return Verdict(Action[self.action], "the gradient is not finite")


class Hungry:
    """Needs more memory than there is for more than some examples at a time.

    Args:
        examples: How many there is room for.
        at: First step at which it does.
        where: `forward` (before anything was computed), `backward` (after it), `evaluation`, `setup`.
        error: `cpu`, `device` or `host`: what kind of exception.
    """

    def __init__(
        self, examples: int = 4, at: int = 0, where: str = "forward", error: str = "cpu"
    ) -> None:
        self.examples, self.at, self.where, self.error = examples, at, where, error
        self.forward: Any = None

    def eat(self, run, where: str, examples: int) -> None:
        if where == self.where and run.clock.step >= self.at and examples > self.examples:
            raise {
                "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: 10 bytes"),
                "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
                "host": MemoryError(),
            }[self.error]

    @hookimpl
    def sft_setup(self, run):
        self.eat(run, "setup", self.examples + 1)

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run, batch):
        self.eat(run, "forward", len(batch.ids))
        result = yield
        self.eat(run, "backward", len(batch.ids))
        return result

    @hookimpl
    def sft_eval_views(self, run, split):
        if self.where == "evaluation" and self.forward is None:
            self.forward = run.backbone.forward
            run.backbone.forward = functools.partial(self.evaluate, run)
        return []

    def evaluate(self, run, model, inputs):
        if not torch.is_grad_enabled():
            self.eat(run, "evaluation", len(inputs["ids"]))
        return self.forward(model, inputs)
