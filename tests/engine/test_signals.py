"""SIGTERM of a scheduler, Ctrl-C of a person: exit code 75, and `resume` changes nothing.

The signals come at named moments, sent by a component to its own process; some from outside.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import pytest
from test_kill import RECIPE, leftovers, newest_is_complete, reports

INTERRUPTED = 75
SIGNALS = ["SIGTERM", "SIGINT"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Reports of a run to which no signal came."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_recipe(folder, when="never")
    child = children.call(folder, "run", "r.toml", "--output", "run", "--quiet")
    assert child.wait() == 0, child.text
    return reports(folder / "run")


def write_recipe(folder, workers=0, **options):
    text = RECIPE.format(steps=6, workers=workers)
    text = text.replace("[checkpoint]\nevery_steps = 1", "[checkpoint]")  # an epoch: three steps
    text = text.replace("[evaluation]", "[evaluation]\nbatch_size = 4")
    text += '[[extension]]\nuse = "test/signaller"\nonce = "sent"\n'
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    (folder / "r.toml").write_text(text)


def run(folder, *more):
    return children.call(folder, "run", "r.toml", "--output", "run", "--quiet", *more)


def resume(folder):
    return children.call(folder, "resume", "run", "--quiet")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("when", "step", "before"),
    [
        ("setup", 0, "before step 0"),
        ("step", 2, "before step 3"),
        ("batch", 3, "before step 4"),
        ("evaluation", 4, "before step 4"),  # the evaluation is finished
        ("saving", 3, "before step 3"),
        ("final", 6, "before the final evaluation"),
    ],
)
def test_a_signal_saves_and_resume_goes_on(tmp_path, undisturbed, when, step, before, number):
    write_recipe(tmp_path, when=when, step=step, number=number)
    child = run(tmp_path)
    assert child.wait() == INTERRUPTED, child.text
    assert child.text == f"error: interrupted by {number} {before}; a checkpoint is written\n"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    newest_is_complete(tmp_path)
    assert leftovers(tmp_path / "run") == []
    child = resume(tmp_path)
    assert child.wait() == 0, child.text
    assert reports(tmp_path / "run") == undisturbed
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_training_leaves_nothing(tmp_path, undisturbed, number):
    write_recipe(tmp_path, when="build", number=number)
    child = run(tmp_path)
    assert child.wait() == INTERRUPTED
    assert child.text == (
        f"error: interrupted by {number} before training began: nothing was written, run the same "
        "command again\n"
    )
    assert not (tmp_path / "run").exists()
    assert run(tmp_path).wait() == 0
    assert reports(tmp_path / "run") == undisturbed


def test_a_signal_while_results_are_written_changes_nothing(tmp_path, undisturbed):
    write_recipe(tmp_path, when="report")
    assert run(tmp_path).wait() == 0
    assert reports(tmp_path / "run") == undisturbed


def test_a_run_without_checkpoints_finishes_its_final_evaluation(tmp_path):
    write_recipe(tmp_path, when="final")
    child = run(tmp_path, "--set", "checkpoint.every_epochs=0", "--set", "checkpoint.best=last")
    assert child.wait() == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("*")) == []


@pytest.mark.parametrize("when", ["step", "saving", "final"])
@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(tmp_path, undisturbed, when, number):
    write_recipe(tmp_path, when=when, step=3, number=number, times=2)
    child = run(tmp_path)
    assert child.wait() == 128 + getattr(signal, number)
    assert child.text == ""
    newest_is_complete(tmp_path)
    assert resume(tmp_path).wait() == 0
    assert reports(tmp_path / "run") == undisturbed
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("number", SIGNALS)
def test_background_workers_survive_a_signal_to_the_group(tmp_path, undisturbed, number):
    """As Ctrl-C and Slurm send it: to the main process and to those that fetch."""
    write_recipe(tmp_path, workers=2, when="step", step=1, number="SIGSTOP")
    child = children.start(tmp_path, "run", "r.toml", "--output", "run", "--quiet")
    wait_until(lambda: state_of(child.pid) == "T")
    os.killpg(child.pid, getattr(signal, number))
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == INTERRUPTED, child.text
    assert "Worker" not in child.text
    assert resume(tmp_path).wait() == 0
    assert reports(tmp_path / "run") == undisturbed


def wait_until(condition):
    end = time.monotonic() + children.PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def state_of(pid):
    """Return the letter of a process's state: T when it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_installed_command_from_its_first_moment(tmp_path):
    """A signal while Python imports libraries; nothing of this process is forked."""
    write_recipe(tmp_path, when="never")
    children.install(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(children.HERE), str(tmp_path / "site")]),
        "SFT_ENGINE_PLUGINS": "victims",
    }
    python = [sys.executable, "-X", "importtime", "-m", "sft_engine"]
    with subprocess.Popen(
        [*python, "run", "r.toml", "--output", "run"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if " torch." in line:  # a part of torch has been imported, most has not
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == INTERRUPTED
    assert "interrupted by SIGTERM before training began" in rest
    assert not (tmp_path / "run").exists()
