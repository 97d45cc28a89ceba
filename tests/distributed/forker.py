"""Starts groups of processes without paying for the imports each time: imports once, then forks.

Reads a job a line from standard input, as JSON: the name of a function in `scenarios`, its arguments, the
number of processes, the folder, variables of the environment and seconds of patience. Answers with a
line: the exit codes by rank, `None` for a process that had to be killed because it did not end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import accelerate.utils  # noqa: F401  a run imports it
import scenarios
import torch
import torchmetrics.classification  # noqa: F401  so are its metrics

from sft_engine import SftError
from sft_engine.testing.runs import plan_recipe


def main() -> None:
    # The first plan imports the plugins, the first optimizer much of torch.
    plan_recipe()
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for line in sys.stdin:
        print(json.dumps(start(json.loads(line))), flush=True)


def start(job):
    port = free_port()
    children = [fork(job, rank, port) for rank in range(job["world"])]
    codes = wait(children, time.monotonic() + job["patience"])
    return [codes.get(child) for child in children]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(job, rank, port):
    child = os.fork()
    if child:
        return child
    try:
        os._exit(be_rank(job, rank, port))
    finally:
        os._exit(70)


def be_rank(job, rank, port):
    folder = Path(job["folder"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"rank{rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(job["environ"])
    if job["world"] > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(job["world"]),
            LOCAL_WORLD_SIZE=str(job["world"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    return carry_out(job, folder, rank)


def carry_out(job, folder, rank):
    """Call the scenario, and return the exit code that the command line would."""
    try:
        result = getattr(scenarios, job["scenario"])(folder, rank, job["world"], **job["options"])
        code = 0
    except SftError as error:
        print(f"error: {error}", file=sys.stderr)
        result, code = {"error": type(error).__name__, "message": str(error)}, error.exit_code
    except BaseException:  # noqa: BLE001  the test shows it
        traceback.print_exc()
        result, code = {"error": "traceback"}, 1
    group = torch.distributed.is_initialized() and torch.distributed.get_world_size()
    result = {"world": group or 1, **result}
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def wait(children, deadline):
    """Return exit codes by process; those that do not end in time are killed and left out."""
    codes, left = {}, set(children)
    while left and time.monotonic() < deadline:
        for child in list(left):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                left.remove(child)
        time.sleep(0.02)
    for child in left:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return codes


if __name__ == "__main__":
    main()
