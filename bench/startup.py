"""How long a command takes that does nothing: the time to import what it needs.

usage: python -m bench.startup VARIANT
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.measurement import Result, common_arguments


def importing(code: str) -> list[str]:
    """The command that starts this interpreter, runs `code` and ends."""
    return [sys.executable, "-c", code]


def ours(*words: str) -> list[str]:
    """Our command: the script that stands beside this interpreter."""
    return [str(Path(sys.executable).with_name("sft-engine")), *words]


VARIANTS: dict[str, list[str]] = {
    "python": importing("pass"),
    "click-pluggy": importing("import click, pluggy"),
    "torch": importing("import torch"),
    "accelerate": importing("import accelerate"),
    "hf": importing("from transformers import Trainer"),
    "lightning": importing("import lightning"),
    "fastai": importing("from fastai.vision.all import Learner"),
    "pta": importing("import pytorch_accelerated"),
    "timm": importing("import timm"),
    "ours-help": ours("--help"),
    "ours-plugins": ours("plugins"),
    "ours-check": ours("check", "recipes/bert_tweets.toml"),
}


def measure(name: str) -> Result:
    """Time one command from its start to its end; also its CPU time and its peak memory.

    Linux counts the memory of the process that forked, so the peak is never below the 14 MiB or
    so of this script.
    """
    start = time.perf_counter()
    child = subprocess.Popen(VARIANTS[name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    message = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{name} ended with code {child.returncode}: {message.strip()[-500:]}")
    return Result(
        benchmark="startup",
        variant=name,
        seconds=seconds,
        details={
            "CPU time (s)": usage.ru_utime + usage.ru_stime,
            "peak memory (MiB)": usage.ru_maxrss / 1024,
        },
    )


def main() -> None:
    """Read the command line and measure one command."""
    parser = common_arguments("The time to start and end, --seed being of no effect.")
    parser.add_argument("variant", choices=list(VARIANTS))
    options = parser.parse_args()
    measure(options.variant).report(options.result)


if __name__ == "__main__":
    main()
