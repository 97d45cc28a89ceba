"""Components that the hook tests name in recipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sft_engine import Action, LossTerm, Verdict, View, hookimpl

EVENTS: list[tuple[Any, ...]] = []


def said(*event: Any) -> None:
    EVENTS.append(event)


class Listener:
    """Implements every hook of a run and writes down when it was called.

    Args:
        name: Distinguishes two of them.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name

    def note(self, hook: str, *more: Any) -> None:
        said(hook, *([self.name] if self.name else []), *more)

    @hookimpl
    def sft_build_data(self, run, split, data):
        self.note("build_data", split, len(data))

    @hookimpl
    def sft_build_model(self, run):
        self.note("build_model", run.layer_groups == [])

    @hookimpl
    def sft_param_groups(self, run, groups):
        self.note("param_groups", sum(len(g.names) for g in groups), run.optimizer is None)

    @hookimpl
    def sft_setup(self, run):
        self.note("setup", run.clock.step, run.folder.exists())

    @hookimpl
    def sft_train_start(self, run):
        self.note("train_start")

    @hookimpl
    def sft_train_end(self, run):
        self.note("train_end")

    @hookimpl
    def sft_phase_start(self, run):
        self.note("phase_start")

    @hookimpl
    def sft_phase_end(self, run):
        self.note("phase_end")

    @hookimpl
    def sft_epoch_start(self, run):
        self.note("epoch_start", run.clock.epoch)

    @hookimpl
    def sft_epoch_end(self, run):
        self.note("epoch_end", run.clock.epoch)

    @hookimpl
    def sft_step_start(self, run):
        self.note("step_start", run.clock.step)

    @hookimpl
    def sft_batch(self, run, batch):
        self.note("batch", len(batch.ids))

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run, batch) -> Iterator[None]:
        self.note("micro_step before")
        result = yield
        self.note("micro_step after", grads(run) > 0)
        return result

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        self.note("loss_terms", tuple(outputs.shape))
        return []

    @hookimpl
    def sft_gradients(self, run):
        self.note("gradients")

    @hookimpl
    def sft_step_verdict(self, run, grad_norm):
        self.note("step_verdict", grad_norm.ndim)

    @hookimpl
    def sft_step_end(self, run):
        self.note("step_end", grads(run) > 0)

    @hookimpl
    def sft_eval_views(self, run, split):
        self.note("eval_views", split)
        return []

    @hookimpl
    def sft_eval_batch(self, run, view, batch, outputs):
        self.note("eval_batch", run.evaluating, len(batch.ids), torch.is_grad_enabled())

    @hookimpl
    def sft_metrics(self, run, view, values):
        self.note("metrics", run.evaluating, "accuracy" in values)

    @hookimpl
    def sft_log(self, run, record):
        self.note("log", record["kind"])

    @hookimpl
    def sft_report(self, run, report):
        self.note("report", report["split"])

    @hookimpl
    def sft_save_model(self, run, model, folder):
        self.note("save_model", model is run.model, (folder / "model.safetensors").exists())

    @hookimpl
    def sft_teardown(self, run, error):
        self.note("teardown", type(error).__name__)


def grads(run: Any) -> int:
    return sum(p.grad is not None for p in run.model.parameters())


class Term:
    """Adds a constant, and so gradient-free, term.

    Args:
        per: Its unit.
        value: Its value in every micro-batch.
        weight: Its weight.
    """

    def __init__(self, per: str = "step", value: float = 1.0, weight: float = 1.0) -> None:
        self.per, self.value, self.weight = per, value, weight

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        value = torch.full((), self.value, device=outputs.device)
        if self.per != "step":
            value = value * batch.units[self.per]
        return [LossTerm("extra", value, self.weight, self.per)]


class Judge:
    """Gives a verdict at one step.

    Args:
        action: Name of the action.
        at: The step.
    """

    class capabilities:  # noqa: N801
        rolls_back = True
        unused_parameters = False

    def __init__(self, action: str = "SKIP", at: int = 2) -> None:
        self.action, self.at = action, at
        self.weights: dict[int, Any] = {}

    @hookimpl
    def sft_step_start(self, run):
        self.weights[run.clock.step] = [p.detach().clone() for p in run.model.parameters()]
        said("weights", run.clock.step, self.weights[run.clock.step])

    @hookimpl
    def sft_step_verdict(self, run, grad_norm):
        return Verdict(Action[self.action], "asked to") if run.clock.step == self.at else None


class Freeze:
    """Freezes the embeddings up to a step, then thaws them: a pure function of position.

    Args:
        until: First step at which they train.
        start: First step at which they are frozen.
    """

    def __init__(self, until: int = 3, start: int = 0) -> None:
        self.until, self.start = until, start

    @hookimpl
    def sft_step_start(self, run):
        frozen = self.start <= run.clock.step < self.until
        embeddings = dict(run.model.named_parameters())["embeddings.weight"]
        embeddings.requires_grad_(not frozen)
        said("embeddings", run.clock.step, embeddings.detach().clone())


class Rescale:
    """Edits what its hook may edit, so that a test can see the effect.

    Args:
        where: Which hook.
    """

    def __init__(self, where: str = "gradients") -> None:
        self.where = where

    @hookimpl
    def sft_build_data(self, run, split, data):
        if self.where == "data" and split == "train":
            data.transforms.append(upper)

    @hookimpl
    def sft_build_model(self, run):
        if self.where == "model":
            torch.nn.init.zeros_(run.model.head.weight)

    @hookimpl
    def sft_param_groups(self, run, groups):
        if self.where == "groups":
            for group in groups:
                group.lr_scale = 0.0 if group.layer_group == 0 else 1.0

    @hookimpl
    def sft_step_start(self, run):
        if self.where == "factors":
            for group in run.parameter_groups:
                group.factors["half"] = 0.5
                group.factors["halt"] = 0.0 if run.clock.step == 1 else 1.0

    @hookimpl
    def sft_batch(self, run, batch):
        if self.where == "batch":
            batch.inputs["ids"] = torch.ones_like(batch.inputs["ids"])

    @hookimpl
    def sft_gradients(self, run):
        if self.where == "gradients":
            for parameter in run.model.parameters():
                parameter.grad.zero_()
        if self.where == "replay":
            before = [p.grad.clone() for p in run.model.parameters()]
            run.replay_window()
            after = [p.grad for p in run.model.parameters()]
            said("replayed", all(map(torch.equal, before, after)))

    @hookimpl
    def sft_step_end(self, run):
        if self.where == "weights":
            with torch.no_grad():
                run.model.head.bias.fill_(7.0)

    @hookimpl
    def sft_eval_views(self, run, split):
        if self.where != "view":
            return []
        blind = lambda row, draws: {**row, "text": "b"}  # noqa: E731
        return [View("blind", transform=blind), View("zero", perturb=zero)]

    @hookimpl
    def sft_metrics(self, run, view, values):
        values["extra"] = 0.5
        if self.where == "stop":
            run.control.stop = "a component asked to"

    @hookimpl
    def sft_report(self, run, report):
        report["section"] = {"hello": 1}

    @hookimpl
    def sft_save_model(self, run, model, folder):
        if self.where == "save":
            torch.nn.init.zeros_(model.head.weight)
            (folder / "beside").mkdir()
            (folder / "beside/note.txt").write_text("here")
            said("kept", bool(run.model.head.weight.any()))


def upper(row, draws):
    said("transform", row["text"], float(draws.random()))
    return row


def zero(run, batch):
    batch.inputs["ids"] = torch.ones_like(batch.inputs["ids"])


class Twice:
    """Runs the inner step a second time."""

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run, batch) -> Iterator[None]:
        result = yield
        once = [p.grad.clone() for p in run.model.parameters()]
        run.forward_backward(batch)
        twice = [p.grad for p in run.model.parameters()]
        said("twice", all(torch.allclose(2 * a, b) for a, b in zip(once, twice, strict=True)))
        return result


class Bad:
    """Fails in a hook.

    Args:
        hook: Where.
    """

    def __init__(self, hook: str = "sft_step_end") -> None:
        self.hook = hook

    @hookimpl
    def sft_step_end(self, run):
        if self.hook == "sft_step_end":
            raise ValueError("boom")

    @hookimpl
    def sft_teardown(self, run, error):
        if self.hook == "sft_teardown":
            raise ValueError("boom at the end")


class Poison:
    """Makes the gradient not a number at one step.

    Args:
        at: The step.
    """

    def __init__(self, at: int = 3) -> None:
        self.at = at

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        if run.clock.step != self.at:
            return []
        return [LossTerm("poison", outputs.sum() * float("nan"))]
