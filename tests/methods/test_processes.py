"""Two processes are one, and a run that was killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES
from safetensors.torch import load_file

HERE = Path(__file__).parent

PATIENCE = 300
NAMES = [name for name, case in CASES.items() if case.parts]


def start(scenario, folder, world=1, **options):
    """Run `rank.py` in one or several processes; return their exit codes and what they wrote."""
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
    paths = [folder / f"rank{rank}.json" for rank in range(world)]
    return codes, [json.loads(path.read_text()) if path.exists() else None for path in paths]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Every component in one process with windows of 16, and in two with 4 each, accumulated twice."""
    folder = tmp_path_factory.mktemp("groups")
    results = {}
    for world, micro in ((1, 16), (2, 4)):
        codes, written = start(
            "several", folder / str(world), world=world, micro=micro, names=NAMES
        )
        assert codes == [0] * world, (folder / str(world) / "rank0.log").read_text()[-4000:]
        results[world] = written
    return folder, results


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(groups, name):
    folder, results = groups
    one, two = (
        load_file(folder / str(world) / name / "model" / "model.safetensors") for world in (1, 2)
    )
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-11
    first, second = results[2]
    assert first[name] == second[name]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_equal(tmp_path):
    codes, whole = start("together", tmp_path / "whole", dies_at=-1)
    assert codes == [0], (tmp_path / "whole" / "rank0.log").read_text()[-4000:]
    killed = tmp_path / "killed"
    for step in (1, 3):
        codes, _ = start("together", killed, dies_at=step)
        assert codes == [-signal.SIGKILL], (killed / "rank0.log").read_text()[-4000:]
    codes, resumed = start("together", killed, dies_at=-1)
    assert codes == [0]
    assert resumed == whole
