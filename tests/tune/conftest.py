"""Studies of a model that trains in milliseconds, in this process or in one that is killed."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path

import pytest

from sft_engine import catalog, records
from sft_engine.testing import install_fake

PLUGIN = """
from sft_engine import hookimpl

@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "A tiny network.")
    catalog.add("extension", "tiny/end", "sft_tunetiny_parts:End", "Ends the process or the run.")
"""
PARTS = '''
import os
import signal

import torch

from sft_engine import hookimpl

runs = 0


class End:
    """Ends the process, or makes the run diverge, where the environment says so.

    `TUNE_END` is `SIGNAL RUN STEP`: the signal, the run of this process, the step of that run.

    Args:
        nan: Learning rate from which on the gradient is NaN; 0 for none.
        memory: Learning rate from which on the memory does not suffice; 0 for none.
    """

    def __init__(self, nan: float = 0.0, memory: float = 0.0) -> None:
        self.nan, self.memory = nan, memory

    @hookimpl
    def sft_setup(self, run):
        global runs
        runs += 1

    @hookimpl
    def sft_step_start(self, run):
        name, number, step = os.environ.get("TUNE_END", "none 0 0").split()
        if name != "none" and (runs, run.clock.step) == (int(number), int(step)):
            os.kill(os.getpid(), getattr(signal, name))

    @hookimpl
    def sft_gradients(self, run):
        lr = run.optimizer.param_groups[0]["lr"]
        if self.nan and lr >= self.nan:
            run.model.head.bias.grad.fill_(torch.nan)
        elif self.memory and lr >= self.memory:
            raise MemoryError("no room")
'''
RECIPE = Path(__file__).with_name("tiny.toml")

sys.path.insert(0, str(Path(__file__).parent))  # for `searchers`


@pytest.fixture(scope="module", autouse=True)
def shared_costs():
    """Read signatures and versions, which do not change, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "signature_of", functools.cache(catalog.signature_of))
        patch.setattr(records, "library_versions", functools.cache(records.library_versions))
        yield


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder in which the fake distribution is installed."""
    folder = tmp_path_factory.mktemp("site")
    modules = {"sft_tunetiny": PLUGIN, "sft_tunetiny_parts": PARTS}
    install_fake(folder, "sft-tunetiny", modules, entry_points={"t": "sft_tunetiny"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def _installed(site):
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(site))
    for name in ("sft_tunetiny", "sft_tunetiny_parts"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder that holds the recipe `tiny.toml`."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE.read_text())
    return tmp_path


@pytest.fixture
def start(site, tmp_path_factory):
    """Start the command line in a process of its own, in the current folder."""
    from searchers import Searcher

    started = []

    def begin(*arguments, **variables):
        output = tmp_path_factory.mktemp("out") / "output.txt"
        started.append(Searcher(site, output, [str(a) for a in arguments], **variables))
        return started[-1]

    yield begin
    for searcher in started:
        searcher.end()
