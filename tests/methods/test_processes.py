"""Two processes are one, and a run that was killed goes on as if it had not been; for every component."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, files
from safetensors.torch import load_file

HERE = Path(__file__).parent

PATIENCE = 600
NAMES = list(CASES)
SHARED = [name for name, case in CASES.items() if not case.whole]


def start(scenario, folder, world=1, **options):
    """Run `rank.py` in one or several processes; return their exit codes and what they wrote."""
    files()  # for all processes
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, str(HERE / "rank.py"), scenario, str(folder), json.dumps(options)]
    processes = []
    for rank in range(world):
        group = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environ = {**os.environ, "OMP_NUM_THREADS": "1", **(group if world > 1 else {})}
        with (folder / f"rank{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
    codes = [process.wait(PATIENCE) for process in processes]
    assert codes == [0] * world, (folder / "rank0.log").read_text()[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Every component in one process with windows of 16, and in two with 4 each, accumulated twice."""
    folder = tmp_path_factory.mktemp("groups")
    results = {
        world: start("several", folder / str(world), world=world, micro=micro, names=NAMES)
        for world, micro in ((1, 16), (2, 4))
    }
    return folder, results


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(groups, name):
    folder, results = groups
    first, second = results[2]
    assert first[name] == second[name]
    if name == "bss":
        assert "this run has 2 processes with a part each" in first[name]["refused"]
        return
    one, two = (
        load_file(folder / str(world) / name / "model" / "model.safetensors") for world in (1, 2)
    )
    if name in SHARED:
        assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-11
    else:  # the ranks agree, on what is another run
        assert all(weight.isfinite().all() for weight in two.values())


@pytest.fixture(scope="module")
def survivors(tmp_path_factory):
    """Every component, with dropout, killed before its third step and gone on."""
    return start("killed", tmp_path_factory.mktemp("killed"), names=NAMES)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_goes_on_bit_equal(survivors, name):
    ended = survivors[name]
    assert ended["code"] == -signal.SIGKILL
    assert ended["resumed"] == ended["whole"]
