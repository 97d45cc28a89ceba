"""A process that carries out cells: lists of names come on standard input, how they ended goes to standard output.

It is started by an executor as `python -m sft_engine.study.worker FOLDER`. When standard input ends, because
whoever started it is done, was asked to stop or was killed, the run that is under way saves a checkpoint, as
at SIGTERM, and the process ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sft_engine.errors import Interrupted, SftError
from sft_engine.replay.decision import free_memory

if TYPE_CHECKING:
    from sft_engine.interruption import Signals
    from sft_engine.replay.shared import SharedTrunk

BUSY = "busy"
"""How a cell ended that another process is carrying out."""

INTERRUPTED = "interrupted"


def answer(
    folder: Path, name: str, signals: Signals | None = None, trunk: SharedTrunk | None = None
) -> dict[str, Any]:
    """Carry out a cell and say how it ended.

    Args:
        folder: Of the study.
        name: Of the cell.
        signals: Open already.
        trunk: What the runs of this process have in common, if layers are frozen.

    Returns:
        `cell` and `state`: `complete`, `stopped`, `failed`, `busy`, `interrupted` or `error`, the last with
        `message` and `exit_code`.
    """
    from sft_engine.study.cell import carry_out
    from sft_engine.study.folder import StudyFolder

    study = StudyFolder(folder)
    cell = next(each for each in study.cells() if each.name == name)
    lock = study.lock_of(cell)
    if not lock.acquire(wait=False):
        return {"cell": name, "state": BUSY}
    try:
        return {"cell": name, **asdict(carry_out(study, cell, signals, trunk))}
    except Interrupted:
        return {"cell": name, "state": INTERRUPTED}
    except SftError as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        message = f"{error} ({notes})" if notes else str(error)
        return {"cell": name, "state": "error", "message": message, "exit_code": error.exit_code}
    finally:
        lock.release()


def answers(
    folder: Path,
    names: Sequence[str],
    signals: Signals | None = None,
    trunk: SharedTrunk | None = None,
) -> list[dict[str, Any]]:
    """Carry out cells and say how each ended; the heads of several are trained together if they can be.

    Args:
        folder: Of the study.
        names: Of the cells; several only if layers are frozen.
        signals: Open already.
        trunk: What the runs of this process have in common.
    """
    from sft_engine.replay.together import JointHeads, joining

    said = []
    for group in _groups(folder, names):
        if len(group) == 1:
            said.append(answer(folder, group[0], signals, trunk))
            continue
        joint = JointHeads()
        with joining(joint):
            seats = joint.turns.run([partial(answer, folder, n, signals, trunk) for n in group])
        for seat in seats:
            if seat.error is not None:
                raise seat.error
        said += [seat.result for seat in seats]
    return said


def _groups(folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Split cells into those that may be carried out together: new ones, as many as memory has room for."""
    begun = [name for name in names if (folder / "runs" / name / "checkpoints").exists()]
    new = [name for name in names if name not in begun]
    # Each has its weights, those it began with, its best and its last checkpoint.
    weights = [path.stat().st_size for path in folder.glob("runs/*/model/*.safetensors")]
    room = max(1, int(free_memory() / (8 * max(weights)))) if weights else 1
    groups = [[name] for name in begun]
    return groups + [new[start : start + room] for start in range(0, len(new), room)]


def work(folder: Path, names: IO[str], reply: IO[str]) -> None:
    """Carry out what is asked for until there is no more."""
    from sft_engine.interruption import Signals
    from sft_engine.replay.shared import SharedTrunk

    trunk = SharedTrunk()
    waiting: queue.Queue[str] = queue.Queue()
    over = threading.Event()
    threading.Thread(target=_listen, args=(names, waiting, over), daemon=True).start()
    while line := waiting.get():
        with Signals() as signals:
            if over.is_set():  # the signal came before anybody listened
                return
            said = answers(folder, json.loads(line), signals, trunk)
        reply.write(json.dumps({"cells": said, "shares": trunk.in_use}) + "\n")
        reply.flush()
        if any(each["state"] == INTERRUPTED for each in said):
            return


def _listen(names: IO[str], waiting: queue.Queue[str], over: threading.Event) -> None:
    """Pass on names; at the end of input let the run that is under way save and end."""
    for line in names:
        waiting.put(line.strip())
    over.set()
    waiting.put("")
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve the study folder that the command line names."""
    # Between two cells a signal is no reason to die with a traceback; input has ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: None)
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like
    work(Path(sys.argv[1]), sys.stdin, reply)


if __name__ == "__main__":
    main()
