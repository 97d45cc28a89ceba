"""The command line as a stranger uses it: in this process where it is quick, else in one of its own.

A fake distribution, `sft-tiny`, offers a model that trains in milliseconds, and components that misbehave.
"""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.testing import install_fake

PLUGIN = '''
from sft_engine import hookimpl

@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "A tiny network.")
    catalog.add("regularizer", "tiny/pull", "sft_tiny_parts:Pull", "Pull weights towards zero.")
    catalog.add("extension", "tiny/halt", "sft_tiny_parts:Halt", "Declares the run diverged.")
    catalog.add("extension", "tiny/forget", "sft_tiny_parts:Forget", "Forgets its state.")
    catalog.add("extension", "tiny/bug", "sft_tiny_parts:Bug", "Has a bug.")
    catalog.add("extension", "tiny/term", "sft_tiny_parts:Term", "Sends itself SIGTERM.")
    catalog.add("probe", "tiny/same", "sft_tiny_parts:Same", "The same view again.")
    catalog.add("schedule", "tiny/pull", "sft_tiny_parts:Flat", "Has a name that a regularizer has.")

@hookimpl
def sft_cli(group):
    import click

    @group.command()
    @click.argument("name")
    def greet(name):
        """Greet somebody."""
        click.echo(f"hello {name}")

    @group.command("run")
    def run():
        """Take the engine's verb."""
        raise AssertionError("a plugin took the engine's verb")
'''
PARTS = '''
import signal

import torch

from sft_engine import Action, LossTerm, Verdict, View, hookimpl


class Pull:
    """Pull weights towards zero.

    Args:
        alpha: Strength of the pull.
    """

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = alpha

    @hookimpl
    def sft_train_start(self, run):
        run.model.embeddings.weight.requires_grad_(False)

    @hookimpl
    def sft_loss_terms(self, run):
        squares = sum(p.square().sum() for p in run.model.parameters())
        return [LossTerm("pull", squares, weight=self.alpha, per="step")]

    @hookimpl
    def sft_gradients(self, run):
        run.model.head.bias.grad.zero_()

    @hookimpl
    def sft_batch(self, batch):
        batch.inputs["ids"][:, 0] = 1

    @hookimpl
    def sft_step_end(self, run):
        with torch.no_grad():
            run.model.norm.bias.add_(1)

    @hookimpl
    def sft_epoch_start(self):
        pass

    @hookimpl
    def sft_epoch_end(self):
        pass


class Flat:
    """A learning rate that stays."""

    def factor(self, step, total):
        return 1.0


class Halt:
    """Declare the run diverged at once."""

    @hookimpl
    def sft_step_verdict(self, run):
        return Verdict(Action.STOP, "told to")


class Forget:
    """Count steps without saving the count, and pull by it: this cannot be resumed."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def sft_step_end(self, run):
        self.count += 1
        with torch.no_grad():
            run.model.head.bias.add_(self.count)


class Bug:
    """Divide by zero in the first step."""

    @hookimpl
    def sft_step_start(self, run):
        1 / 0


class Term:
    """Send the own process SIGTERM, as a scheduler would, in the second step."""

    @hookimpl
    def sft_step_start(self, run):
        if run.clock.step == 1:
            signal.raise_signal(signal.SIGTERM)


class Same:
    """Look at the data a second time, unchanged."""

    @hookimpl
    def sft_eval_views(self, run, split):
        return [View(name="same")]

    @hookimpl
    def sft_metrics(self, view, values):
        values["seen"] = 1.0
'''
RECIPE = """
[task]
use = "text-classification"
[data]
use = "tiny/texts"
validation = 8
test = 8
[backbone]
use = "tiny/text"
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
steps = 3
log_every = 1
[checkpoint]
best = "last"
"""


class Terminal(io.BytesIO):
    """Standard input at which somebody sits."""

    def isatty(self):
        return True


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder in which the fake distribution is installed."""
    folder = tmp_path_factory.mktemp("site")
    modules = {"sft_tiny": PLUGIN, "sft_tiny_parts": PARTS}
    install_fake(folder, "sft-tiny", modules, entry_points={"tiny": "sft_tiny"})
    return folder


@contextmanager
def on_path(site):
    """Let this process see the fake distribution, and forget it afterwards."""
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        for name in ("sft_tiny", "sft_tiny_parts"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module", autouse=True)  # not longer: tests elsewhere must not see it
def _installed(site):
    with on_path(site):
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder that holds the recipe `tiny.toml`."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def sft(capsysbinary, monkeypatch):
    """Run the command line in this process."""

    def run(*arguments, stdin=b"", terminal=False):
        stream = Terminal(stdin) if terminal else io.BytesIO(stdin)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream, encoding="utf-8"))
        capsysbinary.readouterr()
        code = exit_code_of(cli, [str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Ended(code, out.decode(), err.decode())

    return run


@pytest.fixture
def start(site):
    """Start the command line, or any Python code, in a process of its own."""
    started = []

    def begin(*arguments, code=None, **variables):
        environment = os.environ | {"PYTHONPATH": str(site)} | variables
        command = ["-c", code] if code else ["-m", "sft_engine"]
        process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory, site):
    """The folder of a finished run with a second view."""
    from sft_engine import verbs
    from sft_engine.recipe import parse_recipe

    text = RECIPE + '[[probe]]\nuse = "tiny/same"\n'
    target = tmp_path_factory.mktemp("trained") / "run"
    with on_path(site):
        return verbs.run(parse_recipe(text), output=target).folder
