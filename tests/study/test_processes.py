"""Studies in processes of their own: killed and gone on with, on one machine and on a Ray cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sft_engine import SftError, verbs
from sft_engine.study import StudySettings
from sft_engine.study.design import cells_of, make_design
from sft_engine.study.folder import StudyFolder
from sft_engine.study.processes import environment

RECIPE = Path(__file__).with_name("tiny.toml").read_text()
SIX_STEPS = ("train.epochs=3", "checkpoint.every_steps=2", "evaluation.every_steps=4")


def stability(output="s", recipe="tiny.toml", **settings):
    settings = {"data": 1, "seeds": 3, "executor": "local", "threads": 1, **settings}
    return verbs.stability(
        recipe, output=output, overrides=SIX_STEPS, settings=StudySettings(**settings)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _installed):
    """A study that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(RECIPE)
    return stability(folder / "s", folder / "tiny.toml", executor="inline")


def fingerprints(found):
    return [
        json.loads((found.folder / "runs" / cell["name"] / "report.json").read_text())[
            "fingerprint"
        ]
        for cell in found.cells
    ]


def times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_a_killed_worker_is_said_and_the_same_command_goes_on(whole, monkeypatch):
    monkeypatch.setenv("STUDY_END", "data-00-seed-01 5 self")
    with pytest.raises(SftError, match=r"carried out data-00-seed-01 was killed by signal 9"):
        stability()
    done = times("s/runs/data-00-seed-00")
    begun = Path("s/runs/data-00-seed-01/checkpoints")
    assert sorted(path.name for path in begun.iterdir()) == ["step-00000004"]
    # A run that began anew would be killed again: this one goes on from step 4.
    monkeypatch.setenv("STUDY_END", "data-00-seed-01 3 self")
    found = stability(jobs=2)
    assert times("s/runs/data-00-seed-00") == done
    assert fingerprints(found) == fingerprints(whole)
    assert found.results == whole.results


def test_workers_end_with_a_study_that_is_killed(whole, folder):
    command = [
        sys.executable,
        "-m",
        "sft_engine",
        "stability",
        "tiny.toml",
        "-o",
        "s",
        "--data",
        "1",
    ]
    command += ["--seeds", "3", "--threads", "1"]
    for text in SIX_STEPS:
        command += ["--set", text]
    ended = subprocess.run(
        command,
        env={**environment(1), "STUDY_END": "data-00-seed-01 3 parent"},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == -9
    study = StudyFolder(folder / "s")
    cell = study.cells()[1]
    with study.lock_of(cell):  # held until the worker has saved and ended
        steps = [path.name for path in (study.run_of(cell) / "checkpoints").iterdir()]
        assert max(steps) >= "step-00000003"
    assert study.ending(cell).state == "open"
    found = stability(executor="inline")
    assert fingerprints(found) == fingerprints(whole)


def test_a_cell_in_other_hands_is_waited_for(whole, folder):
    """Another process holds a cell for a while; this one does the rest, and then that one."""
    study = StudyFolder(folder / "s")
    cells = cells_of(make_design(1, 3), verbs.check("tiny.toml").seeds)
    (folder / "s/locks").mkdir(parents=True)
    (folder / "s/runs").mkdir()
    code = (
        "import sys, time, pathlib\n"
        "from sft_engine.tuning.locks import FileLock\n"
        "FileLock(pathlib.Path(sys.argv[1])).acquire()\n"
        "print('held', flush=True)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
    )
    last = study.run_of(cells[2]) / "report.json"
    lock = study.lock_of(cells[0]).path
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock), str(last)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    found = stability(executor="inline")
    assert holder.wait() == 0
    holder.stdout.close()
    assert fingerprints(found) == fingerprints(whole)
    order = {cell.name: (study.run_of(cell) / "report.json").stat().st_mtime_ns for cell in cells}
    assert max(order, key=order.get) == cells[0].name


ON_RAY = """
import sys

import ray

from sft_engine import verbs
from sft_engine.study import StudySettings

for _ in range(5):  # on a busy machine its processes give up waiting for each other
    try:
        ray.init(
            num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000
        )
        break
    except Exception as error:
        print(error)
        ray.shutdown()
assert ray.cluster_resources()["CPU"] == 1
verbs.stability(
    "tiny.toml",
    output="s",
    overrides=sys.argv[1:],
    settings=StudySettings(data=1, seeds=3, executor="ray"),
)
print("tasks", len(ray.nodes()))
ray.shutdown()
"""


@pytest.mark.slow
def test_on_a_ray_cluster(whole, folder):
    ended = subprocess.run(
        [sys.executable, "-c", ON_RAY, *SIX_STEPS],
        env=environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = stability(executor="inline")  # all is done: this reads the results
    assert fingerprints(found) == fingerprints(whole)
    assert found.results == whole.results
