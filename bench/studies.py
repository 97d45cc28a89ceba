"""How long a stability study with a frozen trunk takes beside a single run.

usage: python -m bench.studies RECIPE [--seeds 8] [--rounds 2] [--threads 1] [--set KEY=VALUE …]

The recipe is frozen by `[freezing] use = "frozen"`, whatever it says itself. Times are of the whole command, from
its start to the verdict; the two stand side by side in each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

OURS = str(Path(sys.executable).with_name("sft-engine"))


def timed(*words: str) -> float:
    """Carry out a command of ours; return its seconds."""
    start = time.perf_counter()
    subprocess.run([OURS, *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(recipe: str, folder: Path, changes: Sequence[str], threads: int) -> float:
    """Carry out the recipe once; return the seconds of the whole command."""
    return timed("run", recipe, "--output", str(folder), *changes, f"--set=train.threads={threads}")


def study(recipe: str, folder: Path, changes: Sequence[str], threads: int, seeds: int) -> float:
    """Carry out the recipe with several seeds; return the seconds of the whole command."""
    design = ["--seeds", str(seeds), "--vary", "init,order,noise", "--threads", str(threads)]
    return timed("stability", recipe, "--output", str(folder), *changes, *design)


def main() -> None:
    """Read the command line, and print each round and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    changes = [f"--set={each}" for each in ("freezing.use=frozen", *given.overrides)]
    ratios = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            one = run(given.recipe, Path(scratch, "run"), changes, given.threads)
            folder = Path(scratch, "study")
            many = study(given.recipe, folder, changes, given.threads, given.seeds)
            path = json.loads((folder / "study.json").read_text())["path"]
        ratios.append(many / one)
        print(f"1 run {one:.1f} s, {given.seeds} runs {many:.1f} s: {ratios[-1]:.2f} ({path})")
    print(f"median ratio {statistics.median(ratios):.2f} of {given.rounds} rounds")


if __name__ == "__main__":
    main()
