"""Starts the command line through real launchers, with the tiny components installed as a plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sft_engine.testing import install_fake
from sft_engine.testing.runs import TINY

HERE = Path(__file__).parent
PATIENCE = 600

PLUGIN = """
from sft_engine import hookimpl

@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "Tiny network.")
    for name in ("Kill", "Fails"):
        catalog.add("extension", f"test/{name.lower()}", f"scenarios:{name}", "Of a test.")
"""


@dataclass(frozen=True)
class Ended:
    """How a launcher ended.

    Args:
        code: What it returned.
        out: Its standard output.
        text: Standard output and standard error.
    """

    code: int
    out: str
    text: str


def recipe(folder: Path, *extensions: str) -> Path:
    """Write the tiny recipe, with extensions given as TOML lines."""
    path = folder / "recipe.toml"
    path.write_text(TINY + "".join(f"[[extension]]\nuse = {line}\n" for line in extensions))
    return path


def torchrun(folder: Path, verb: str, subject: Path, overrides=(), *more, world: int = 2) -> Ended:
    """Run a verb with torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(world), "-m", "sft_engine"]
    return start(folder, launcher, verb, subject, overrides, *more)


def accelerate(folder: Path, options, verb: str, subject: Path, overrides=(), *more) -> Ended:
    """Run a verb with `accelerate launch OPTIONS`, which end in what is launched."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *map(str, options)]
    return start(folder, launcher, verb, subject, overrides, *more)


def start(folder: Path, launcher, verb: str, subject: Path, overrides=(), *more) -> Ended:
    """Run a verb of the command line through a launcher."""
    site = folder / "site"
    install_fake(site, "sft-acme", {"sft_acme": PLUGIN}, entry_points={"acme": "sft_acme"})
    sets = [part for override in overrides for part in ("--set", override)]
    ended = subprocess.run(
        [*launcher, verb, str(subject), *sets, *map(str, more)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"},
    )
    return Ended(ended.returncode, ended.stdout, ended.stdout + ended.stderr)
