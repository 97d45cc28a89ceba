"""design.md 6.3: killed anywhere, a run ends bit-equal to the one that nobody killed.

Every child is a real process that ends by a real SIGKILL. Named kills come before each file operation of
a stage, one child each; random ones come from outside, at any moment.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import children
import pytest
from children import Trap

from sft_engine.checkpoint import Keeper

RECIPE = """
[task]
use = "text-classification"
[data]
use = "tiny/texts"
validation = 8
test = 8
[backbone]
use = "tiny/text"
dropout = 0.3
[optimizer]
use = "adamw"
lr = 0.01
[schedule]
use = "one-cycle"
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
micro_batch_size = 6
steps = {steps}
workers = {workers}
log_every = 1
[evaluation]
every_steps = 4
[checkpoint]
every_steps = 1
[[extension]]
use = "test/drift"
[[extension]]
use = "early-stopping"
patience = 50
"""
KILLED = -signal.SIGKILL


@pytest.fixture
def folder(tmp_path):
    """Where children live: a recipe in `r.toml`, the run in `run`."""
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(folder, steps=5, workers=0):
    (folder / "r.toml").write_text(RECIPE.format(steps=steps, workers=workers))


def reports(folder):
    """Return what must be equal: the report, every record, the predictions."""
    report = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("seconds", None), record.pop("examples_per_second", None)
    return report, records, (folder / "predictions" / "test.jsonl").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Reports of a run of so many steps that nobody killed."""
    known = {}

    def reports_of(steps):
        if steps not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            write_recipe(folder, steps)
            child = children.call(folder, "run", "r.toml", "--output", "run", "--quiet")
            assert child.wait() == 0, child.text
            known[steps] = reports(folder / "run")
        return known[steps]

    return reports_of


def go_on(folder):
    """Return the arguments with which a scheduler would start the job again."""
    if (folder / "run" / "recipe.toml").exists():
        return ["resume", "run", "--quiet"]
    return ["run", "r.toml", "--output", "run", "--quiet"]


def newest_is_complete(folder):
    """Read the newest checkpoint, which must not be a damaged one."""
    damaged = []
    keeper = Keeper(folder / "run" / "checkpoints", notice=damaged.append)
    if keeper.steps():
        keeper.newest()
    assert damaged == []


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if p.name.startswith((".tmp", ".del"))]


def has_ended(child):
    """Say whether a run is done: by this child, or by one that was killed after its last word."""
    return child.wait() == 0 or "has ended already" in child.text


def kill_everywhere(folder, stage):
    """Kill one child before each file operation of a stage; return what those operations were."""
    killed = []
    for at in range(100):
        log = folder / f"log-{at}"
        child = children.call(folder, *go_on(folder), trap=Trap(stage, at, log))
        if has_ended(child):
            return killed
        assert child.wait() == KILLED, child.text
        killed.append(log.read_text().splitlines()[-1])
        newest_is_complete(folder)
    raise AssertionError("there is no end to it")


def test_killed_before_each_file_operation_of_a_save(folder, undisturbed):
    write_recipe(folder, steps=8)
    killed = kill_everywhere(folder, "save")
    assert reports(folder / "run") == undisturbed(8)
    assert leftovers(folder / "run") == []
    kinds = {operation.partition(" ")[0] for operation in killed}
    assert kinds == {
        "os.mkdir",
        "begin",
        "half",
        "open",
        "fsync",
        "os.rename",
        "os.remove",
        "os.rmdir",
    }
    assert len(killed) >= 15


def test_killed_before_each_file_operation_of_the_start(folder, undisturbed):
    killed = kill_everywhere(folder, "start")
    report, *rest = reports(folder / "run")
    # Killed between recipe.toml and run.json, the run has forgotten its recipe's file name.
    renamed = json.loads(json.dumps(report).replace("recipe.toml", "r.toml"))
    assert ({**renamed, "recipe": "r.toml"}, *rest) == undisturbed(5)
    assert leftovers(folder / "run") == []
    assert {"os.mkdir run", "os.rename .tmp-recipe.toml"} <= {
        k.rpartition("-")[0] or k for k in killed
    }


def test_killed_before_each_file_operation_after_training(folder, undisturbed):
    killed = kill_everywhere(folder, "final")
    assert reports(folder / "run") == undisturbed(5)
    assert leftovers(folder / "run") == []
    assert "os.rename .tmp-model" in killed
    assert any("report.json" in operation for operation in killed)
    assert any("test.jsonl" in operation for operation in killed)


def kill_at_random(folder, draws, kills, undisturbed):
    """Kill children at any moment until `kills` are dead; every run that ends must be the same."""
    killed = inside = 0
    while killed < kills:
        shutil.rmtree(folder / "run", ignore_errors=True)
        while True:
            child = children.start(folder, *go_on(folder))
            if killed < kills and wait_for_a_moment(folder / "run" / "checkpoints", draws, child):
                child.process.kill()
            if has_ended(child):
                break
            assert child.wait() == KILLED, child.text
            killed += 1
            inside += bool(leftovers(folder / "run"))
            newest_is_complete(folder)
        assert reports(folder / "run") == undisturbed
        assert leftovers(folder / "run") == []
    print(f"{killed} kills, {inside} of them inside a save")


def wait_for_a_moment(checkpoints, draws, child):
    """Wait until one or two checkpoints more are there, then for a part of the time that one took."""
    first = seen = newest(checkpoints)
    began = time.perf_counter()
    for _ in range(draws.choice([1, 1, 2])):
        began = time.perf_counter()
        while newest(checkpoints) <= seen:
            if not child.process.is_alive():
                return False
            time.sleep(0.001)
        seen = newest(checkpoints)
    if seen != first:
        time.sleep(draws.random() * min(time.perf_counter() - began, 0.1))
    return True


def newest(checkpoints):
    """Return the name of the newest checkpoint."""
    return max((path.name for path in checkpoints.glob("step-*")), default="")


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(folder, undisturbed, workers):
    write_recipe(folder, steps=16, workers=workers)
    kill_at_random(folder, random.Random(workers), 10, undisturbed(16))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_many_random_moments(folder, undisturbed, workers, seed):
    write_recipe(folder, steps=60, workers=workers)
    kill_at_random(folder, random.Random(seed), 40, undisturbed(60))
