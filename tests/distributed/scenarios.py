"""What the processes of a group do in the tests, and the components that they use.

Every scenario takes the folder, this process's rank and the number of processes, and returns what the
test compares, as JSON values.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sft_engine import (
    LossTerm,
    OutputError,
    View,
    checkpoint,
    hookimpl,
    records,
    run_files,
    training,
)
from sft_engine.gradients import Gradients
from sft_engine.state import digest
from sft_engine.testing.runs import TINY, plan_recipe
from sft_engine.training import train

sys.path.append(str(Path(__file__).parents[1] / "probes"))  # data and models of every kind

from watching import COMPONENTS as PROBED

NOTES: list = []
"""What the components of this process noted in the current run."""


# --- running --------------------------------------------------------------------------------------


def carry_out(folder, overrides=(), extensions=(), **options):
    """Run the tiny recipe with extensions, given as TOML lines."""
    NOTES.clear()
    text = TINY + "".join(f"[[extension]]\nuse = {line}\n" for line in extensions)
    plan = plan_recipe(text, overrides, COMPONENTS)
    return train(plan, Path(folder), **options)


def summary(outcome):
    return {
        "fingerprint": outcome.fingerprint,
        "metrics": outcome.metrics,
        "best": outcome.best,
        "reason": outcome.reason,
        "notes": list(NOTES),
    }


def runs(folder, rank, world, cases):
    """Carry out several runs one after another: name → arguments of `carry_out`."""
    results = {}
    for name, case in cases.items():
        overrides = [
            text.format(micro=case.get("micro", 16) // world) for text in case["overrides"]
        ]
        outcome = carry_out(folder / name, overrides, case.get("extensions", ()))
        results[name] = summary(outcome)
    return results


def planted_mean_of_means(folder, rank, world, cases):
    """The usual mistake: every micro-batch's mean counts the same."""

    def mean_of_means(self, per, batch):
        count = batch.units.get(per, 0.0)
        return 1.0 / count / len(self._window) / world if count else 0.0

    Gradients._share = mean_of_means
    return runs(folder, rank, world, cases)


def interrupted(folder, rank, world, at, overrides, extensions=()):
    """Stop a run before a step, as a signal would."""
    return summary(carry_out(folder / "run", overrides, extensions, stop_after=at))


def resumed(folder, rank, world, overrides, extensions=(), scramble=True):
    """Go on with it, from other states of the generators."""
    if scramble:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(rank + 7)
    return summary(carry_out(folder / "run", overrides, extensions, resume=True))


def different(folder, rank, world, overrides):
    """Run with overrides that differ between the ranks."""
    return summary(carry_out(folder / "run", overrides[rank]))


def different_plugins(folder, rank, world, versions):
    """Run with an installed plugin that has another version on every rank; None has none."""
    from sft_engine.catalog import plan
    from sft_engine.plugins import load_plugins
    from sft_engine.recipe import parse_recipe
    from sft_engine.testing import install_fake

    site = folder / f"site{rank}"
    if versions[rank] is not None:
        install_fake(
            site,
            "sft-acme",
            {"sft_acme": PLUGIN},
            version=versions[rank],
            entry_points={"acme": "sft_acme"},
        )
    sys.path.insert(0, str(site))
    planned = plan(parse_recipe(TINY, "recipe.toml"), load_plugins())
    return summary(train(planned, folder / "run"))


PLUGIN = """
from sft_engine import hookimpl

@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "Tiny network.")
"""


GOOD = {"results": 1, "records": 2}
"""How many calls succeed first."""


def failing(folder, rank, world, where, at, overrides=(), extensions=()):
    """Let a part of the engine fail on one rank."""
    if rank == at:
        owner, name, error = {
            "checkpoint": (checkpoint, "_write_files", OSError(errno.ENOSPC, "No space left")),
            "records": (records, "append_line", OutputError("cannot write metrics.jsonl")),
            "folder": (run_files, "write_text", OutputError("cannot write recipe.toml")),
            "results": (run_files, "write_json", OutputError("cannot write report.json")),
            "data": (Texts, "load", ValueError("stumbled")),
        }[where]
        setattr(owner, name, raising(error, GOOD.get(where, 0), getattr(owner, name)))
    return summary(carry_out(folder / "run", overrides, extensions))


def raising(error, after, real):
    """Return a function that does what it stands in for a number of times, then raises an error."""
    calls = []

    def stand_in(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise error
        return real(*args, **kwargs)

    return stand_in


def sharded(folder, rank, world, cases):
    """Carry out several runs, and say what kind of parameters the last one had."""
    seen = {}
    original = training.Session.carry_out

    def carry_out_and_look(self):
        parameters = list(self.run.model.parameters())
        seen.setdefault("kind", type(parameters[0].data).__name__)
        local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
        seen.setdefault("elements", sum(p.numel() for p in local))
        return original(self)

    training.Session.carry_out = carry_out_and_look
    return {**runs(folder, rank, world, cases), **seen}


# --- components -----------------------------------------------------------------------------------


class Freeze:
    """Freezes the embeddings and the first block between two steps; notes the frozen bytes.

    Args:
        start: First step at which they are frozen.
        until: First step at which they train again.
        hook: Where they are frozen for good instead; empty for every step.
    """

    def __init__(self, start: int = 0, until: int = 1000, hook: str = "") -> None:
        self.start, self.until, self.hook = start, until, hook

    def toggle(self, run, frozen):
        parts = [p for n, p in run.model.named_parameters() if n.startswith(("embed", "blocks.0"))]
        for parameter in parts:
            parameter.requires_grad_(not frozen)
        whole = [checkpoint.sharding.whole(p.detach()).clone() for p in parts]
        NOTES.append([run.clock.step, frozen, digest(whole)])

    @hookimpl
    def sft_build_model(self, run):
        if self.hook == "build":
            self.toggle(run, frozen=True)

    @hookimpl
    def sft_setup(self, run):
        if self.hook == "setup":
            self.toggle(run, frozen=True)

    @hookimpl
    def sft_train_start(self, run):
        if self.hook == "train":
            self.toggle(run, frozen=True)

    @hookimpl
    def sft_step_start(self, run):
        if not self.hook:
            self.toggle(run, frozen=self.start <= run.clock.step < self.until)

    @hookimpl
    def sft_train_end(self, run):
        self.toggle(run, frozen=False)


class Terms:
    """Adds a term of every kind, one of them in a few micro-batches only."""

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        decay = sum(p.square().sum() for p in run.model.parameters())
        terms = [
            LossTerm("decay", decay, 0.01, "step"),
            LossTerm("one", outputs.new_ones(()), 1.0, "step"),
            LossTerm("calm", outputs.square().sum(), 0.1, "item"),
        ]
        if 0 in batch.ids:
            terms.append(LossTerm("rare", outputs[batch.ids.index(0)].sum(), 0.1, "item"))
        return terms


class Drift:
    """State of every kind: averaged weights, draws of all generators, counts of this rank's own."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}
        self.drawn: list[float] = []
        self.seen = 0

    @hookimpl
    def sft_batch(self, run, batch):
        self.seen += len(batch.ids)
        keep = torch.rand(batch.inputs["ids"].shape) > 0.1
        batch.inputs["ids"] = batch.inputs["ids"] * keep

    @hookimpl
    def sft_gradients(self, run):
        for parameter in run.model.parameters():
            if not hasattr(parameter.grad, "device_mesh"):
                parameter.grad += 1e-3 * torch.randn_like(parameter)

    @hookimpl
    def sft_step_end(self, run):
        for name, weight in run.model.named_parameters():
            old = self.average.get(name, weight.detach().clone())
            self.average[name] = 0.9 * old + 0.1 * weight.detach()
        everywhere = random.random() + np.random.rand()
        self.drawn.append(everywhere + torch.rand(()).item())

    @hookimpl
    def sft_train_end(self, run):
        NOTES.append(self.seen)

    def state_dict(self):
        return {"average": self.average, "drawn": self.drawn, "seen": self.seen}

    def load_state_dict(self, state):
        self.average, self.drawn, self.seen = state["average"], state["drawn"], state["seen"]


class Asks:
    """One rank alone asks for something.

    Args:
        what: `stop`, `save`, `evaluate` or `skip`.
        at: Before the end of which step.
        rank: Who asks.
        hook: `step` or `metrics`.
    """

    def __init__(self, what: str = "stop", at: int = 3, rank: int = 1, hook: str = "step") -> None:
        self.what, self.at, self.rank, self.hook = what, at, rank, hook

    def ask(self, run):
        if run.accelerator.process_index != self.rank or run.clock.step != self.at:
            return
        if self.what == "stop":
            run.control.stop = f"rank {self.rank} asked"
        elif self.what != "skip":
            setattr(run.control, self.what, True)

    @hookimpl
    def sft_step_end(self, run):
        if self.hook == "step":
            self.ask(run)

    @hookimpl
    def sft_step_verdict(self, run, grad_norm):
        from sft_engine import Action, Verdict

        mine = run.accelerator.process_index == self.rank and run.clock.step == self.at
        return (
            Verdict(Action.SKIP, f"rank {self.rank} asked")
            if mine and self.what == "skip"
            else None
        )

    @hookimpl
    def sft_metrics(self, run, view, values):
        values["mine"] = float(run.accelerator.process_index)
        if self.hook == "metrics":
            self.ask(run)


class Idle:
    """Adds a parameter that no loss reaches."""

    @hookimpl
    def sft_build_model(self, run):
        model = run.model
        model.norm.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))


class Normed:
    """Puts batch norm, whose statistics follow each rank's own examples, in the place of layer norm."""

    @hookimpl
    def sft_build_model(self, run):
        run.model.norm = torch.nn.BatchNorm1d(8, dtype=torch.float64)

    @hookimpl
    def sft_teardown(self, run, error):
        NOTES.append(digest(dict(run.model.named_buffers())))


class Grouped:
    """Puts group norm, which knows of one example alone, in the place of batch norm."""

    @hookimpl
    def sft_build_model(self, run):
        for block in (run.model.stem, run.model.block):
            block[1] = torch.nn.GroupNorm(1, block[1].num_features)


class Views:
    """Offers a view of changed data and one of changed weights; notes whom it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    @hookimpl
    def sft_eval_views(self, run, split):
        return [View("short", transform=shorten)]

    @hookimpl
    def sft_eval_batch(self, run, view, batch, outputs):
        if run.evaluating == "test" and not view.name:
            self.seen += batch.ids

    @hookimpl
    def sft_teardown(self, run, error):
        NOTES.append(self.seen)


def shorten(row, draws):
    return {**row, "text": row["text"][: int(draws.integers(1, 5))]}


class Kill:
    """Sends a signal at a step.

    Args:
        at: The step.
        rank: Who sends it; -1 for all.
        signal: Its name.
        to: `self`, `parent` (the launcher), or `group` (this process and what it started).
        slowly: Seconds that every later step takes, until the signal has gone round.
    """

    def __init__(
        self,
        at: int = 4,
        rank: int = 1,
        signal: str = "SIGTERM",
        to: str = "self",
        slowly: float = 0.0,
    ) -> None:
        self.at, self.rank, self.signal, self.to, self.slowly = at, rank, signal, to, slowly

    @hookimpl
    def sft_step_start(self, run):
        if run.clock.step > self.at:
            time.sleep(self.slowly)
        if self.rank not in (-1, run.accelerator.process_index) or run.clock.step != self.at:
            return
        number = getattr(signal, self.signal)
        if "group" in self.to:
            os.killpg(os.getpgrp(), number)
        if "parent" in self.to:
            os.kill(os.getppid(), number)
        if self.to == "self":
            os.kill(os.getpid(), number)


class Fails:
    """Raises an exception on one rank.

    Args:
        at: The step.
        rank: Who fails.
        kind: `ValueError` or `DataError`.
    """

    def __init__(self, at: int = 2, rank: int = 1, kind: str = "ValueError") -> None:
        self.at, self.rank, self.kind = at, rank, kind

    @hookimpl
    def sft_step_start(self, run):
        if run.accelerator.process_index == self.rank and run.clock.step == self.at:
            from sft_engine import DataError

            raise {"ValueError": ValueError, "DataError": DataError}[self.kind]("boom on one rank")


class Texts:
    """Rows that may differ between the ranks.

    Args:
        same: Whether they are the same.
        fails: A rank that cannot read them.
    """

    def __init__(self, same: bool = True, fails: int = -1) -> None:
        self.same, self.fails = same, fails

    def load(self):
        from sft_engine import DataError
        from sft_engine.testing.tiny import TinyTexts

        rank = int(os.environ.get("RANK", "0"))
        if rank == self.fails:
            raise DataError("the disk of this machine is gone")
        return TinyTexts(seed=0 if self.same else rank).load()


COMPONENTS_HERE = {
    each.__name__: each
    for each in (Freeze, Terms, Drift, Asks, Idle, Normed, Grouped, Views, Kill, Fails, Texts)
}
COMPONENTS = PROBED | {
    ("data" if name == "Texts" else "extension", f"test/{name.lower()}"): f"scenarios:{name}"
    for name in COMPONENTS_HERE
}
