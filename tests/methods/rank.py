"""One process of a group: trains recipes of `cases` and writes what it got; or dies in one."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from cases import DOUBLE, compatible, recipe, trained

from sft_engine import training


def several(folder, micro, names):
    """Train with each of some components, in micro-batches of a size."""
    results = {}
    for name in names:
        cut = [] if name == "bss" else [f"train.micro_batch_size={micro}"]
        outcome = trained(folder / name, recipe(name), [*DOUBLE, *cut])
        results[name] = {"fingerprint": outcome.fingerprint}
    return results


def together(folder, dies_at):
    """Train with all components at once; die before a step as if the power had failed, or go on."""
    begin = training.Loop._begin_step

    def fatal(self):
        if self.run.clock.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self)

    training.Loop._begin_step = fatal
    every = ["checkpoint.every_steps=1", "backbone.dropout=0.3"]
    text = recipe(*compatible(), final=True)
    outcome = trained(folder / "run", text, every, resume=(folder / "run").exists())
    return {"fingerprint": outcome.fingerprint}


if __name__ == "__main__":
    scenario, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    result = {"several": several, "together": together}[scenario](folder, **options)
    (folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
