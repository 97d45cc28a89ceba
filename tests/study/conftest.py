"""Studies of a model that trains in milliseconds, in this process or in others."""

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
    catalog.add("extension", "tiny/end", "sft_studytiny_parts:End", "Ends processes and runs.")
    catalog.add("freezing", "tiny/trunk", "sft_studytiny_parts:Trunk", "Freezes all but the head.")
"""
PARTS = '''
import os
import signal
import time

import torch

from sft_engine import hookimpl


class End:
    """Ends the process, or makes the run diverge or fall behind, where the environment says so.

    `STUDY_END` is `CELL STEP WHO`: as the cell comes to that step, `self` or `parent` is killed, or all
    of this process is asked to `stop`.
    `STUDY_BAD` is `CELL HOW`: the cell that diverges (`nan`) or learns the contrary (`wrong`).
    """

    def __init__(self) -> None:
        pass

    @hookimpl
    def sft_step_start(self, run):
        cell, step, who = os.environ.get("STUDY_END", "none 0 self").split()
        if (run.folder.name, run.clock.step) == (cell, int(step)):
            if who == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.kill(os.getpid() if who == "self" else os.getppid(), signal.SIGKILL)
            time.sleep(3)  # until the end of standard input is noticed

    @hookimpl
    def sft_gradients(self, run):
        cell, how = os.environ.get("STUDY_BAD", "none none").split()
        if run.folder.name == cell:
            for p in filter(lambda p: p.grad is not None, run.model.parameters()):
                if how == "nan":
                    p.grad.fill_(torch.nan)
                else:
                    p.grad.neg_()


class Trunk:
    """Freezes all but some layers, and may listen to the last one."""

    def __init__(self, trains: tuple[str, ...] = ("head.",), listens: bool = False) -> None:
        self.trains, self.listens = tuple(trains), listens

    @hookimpl
    def sft_setup(self, run):
        for name, p in run.model.named_parameters():
            p.requires_grad = name.startswith(self.trains)
        if self.listens:
            run.model.head.register_forward_hook(lambda *_: None)
'''
RECIPE = Path(__file__).with_name("tiny.toml")


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
    modules = {"sft_studytiny": PLUGIN, "sft_studytiny_parts": PARTS}
    install_fake(folder, "sft-studytiny", modules, entry_points={"t": "sft_studytiny"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def _installed(site):
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(site))
    for name in ("sft_studytiny", "sft_studytiny_parts"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder that holds the recipe `tiny.toml`."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE.read_text())
    return tmp_path
