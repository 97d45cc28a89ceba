"""One process of a group: trains recipes of `cases` and writes what it got; or has children that die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cases
from cases import CASES, DOUBLE, needs, recipe, trained

from sft_engine import RecipeError, training

DIES_AT = 2


def several(folder, micro, names):
    """Train with each of some components, in micro-batches of a size."""
    results = {}
    for name in names:
        overrides = [*DOUBLE, *needs([name]), *micro_batches(name, micro)]
        try:
            outcome = trained(folder / name, recipe(name), overrides)
        except RecipeError as error:
            results[name] = {"refused": str(error)}
        else:
            results[name] = {"fingerprint": outcome.fingerprint}
    return results


def micro_batches(name, micro):
    return [] if CASES[name].whole else [f"train.micro_batch_size={micro}"]


def killed(folder, names):
    """Train with each; then in a child that dies as if the power had failed; and go on from there."""
    results = {}
    for name in names:
        overrides = [*DOUBLE, *needs([name]), "checkpoint.every_steps=1", "backbone.dropout=0.3"]
        whole = trained(folder / f"{name} whole", recipe(name), overrides)
        code = in_a_child(lambda: fatal(folder / name, recipe(name), overrides))  # noqa: B023
        resumed = trained(folder / name, recipe(name), overrides, resume=True)
        results[name] = {
            "code": code,
            "whole": whole.fingerprint,
            "resumed": resumed.fingerprint,
        }
        for left in (f"{name} whole", name):
            shutil.rmtree(folder / left)
    return results


def in_a_child(work):
    """Carry out some work in a copy of this process; return how the copy ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fatal(folder, text, overrides):
    begin = training.Loop._begin_step

    def dies(self):
        if self.run.clock.step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self)

    training.Loop._begin_step = dies
    trained(folder, text, overrides)


if __name__ == "__main__":
    scenario, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    with cases.shared_costs():
        result = {"several": several, "killed": killed}[scenario](folder, **options)
    (folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
