"""Cells on a Ray cluster: every one a task, wherever there is room; all machines share the study's folder."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import Interrupted, OutputError, RecipeError, SftError
from sft_engine.study.processes import POLL, Answer, Rounds, Tell, Worker

if TYPE_CHECKING:
    from sft_engine.interruption import Signals


@dataclass
class OnRay:
    """Cells as tasks of a Ray cluster.

    The cluster is the one that `RAY_ADDRESS` names, or the one that this process is connected to; without
    either, one of this machine is started and ended with the study. A task starts the same worker process as
    on one machine, so every run has an interpreter, threads and signals of its own.

    Args:
        jobs: Most tasks at a time; 0 for as many as the cluster has room for.
        threads: Processors that a task asks for.
    """

    jobs: int
    threads: int

    def carry_out(self, folder: Path, names: Sequence[str], tell: Tell, signals: Signals) -> None:
        """Carry them out.

        Raises:
            RecipeError: Ray is missing.
            OutputError: a machine of the cluster does not see the study's folder.
        """
        ray = require_ray()
        own = not ray.is_initialized()
        if own:
            _connect(ray)
        try:
            self._run(ray, folder.absolute(), Rounds(names), tell, signals)
        finally:
            if own:
                ray.shutdown()

    def _run(self, ray: Any, folder: Path, rounds: Rounds, tell: Tell, signals: Signals) -> None:
        stop = folder / "locks" / f"stop-{os.getpid()}-{time.time_ns()}"
        task = ray.remote(num_cpus=self.threads, max_retries=0)(on_node)
        limit = self.jobs or len(rounds.names)
        tasks: dict[Any, str] = {}
        try:
            while not rounds.done:
                if signals.received:
                    raise Interrupted("the study was interrupted: the same command goes on")
                while len(tasks) < limit and (names := rounds.ready()):
                    given = (str(folder), names[0], self.threads, str(stop), os.getcwd(), sys.path)  # noqa: PTH109
                    tasks[task.remote(*given)] = names[0]
                ended, _ = ray.wait([*tasks], timeout=POLL) if tasks else ([], [])
                if not tasks:
                    time.sleep(POLL)
                for each in ended:
                    del tasks[each]
                    rounds.settle(_seen(ray.get(each), folder), tell)
        finally:
            if tasks:
                stop.touch()  # what is under way saves a checkpoint
                ray.wait([*tasks], num_returns=len(tasks))
                stop.unlink()


def _connect(ray: Any) -> None:
    """Connect to the cluster that `RAY_ADDRESS` names, or start one of this machine."""
    address = os.environ.get("RAY_ADDRESS") or None
    own = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except Exception as error:  # Ray raises it bare where its processes do not start
        where = (
            f"the cluster at RAY_ADDRESS={address} cannot be reached"
            if address
            else ("a cluster of this machine did not start")
        )
        raise SftError(
            f"--executor ray: {where} ({' '.join(str(error).split())}); see Ray's logs, or take "
            "--executor local"
        ) from error


def _seen(said: Answer, folder: Path) -> Answer:
    if said["state"] == "unseen":
        raise OutputError(
            f"--output {folder}: the machine {said['node']} of the Ray cluster has no such folder; put the study "
            "on a file system that all machines share, under the same path"
        )
    return said


def on_node(
    folder: str, name: str, threads: int, stop: str, current: str, paths: Sequence[str]
) -> Answer:
    """Carry out a cell on a machine of the cluster: in a worker process, which ends with this task.

    Args:
        folder: Of the study, on the file system that all machines share.
        name: Of the cell.
        threads: Of the worker's libraries.
        stop: A file; as soon as it is there, the run saves a checkpoint and ends.
        current: Current folder of the command, which relative paths of the recipe start from.
        paths: Where the command imports from.
    """
    import platform

    if not (Path(folder) / "study.json").exists():
        return {"cell": name, "state": "unseen", "node": platform.node()}
    if Path(current).is_dir():
        os.chdir(current)
    sys.path += [path for path in paths if path not in sys.path]
    answers: queue.Queue[tuple[Worker, Answer | None]] = queue.Queue()
    with tempfile.TemporaryDirectory() as logs:
        worker = Worker(Path(folder), Path(logs, "worker.log"), answers, threads)
        worker.begin([name])
        while True:
            try:
                _, said = answers.get(timeout=POLL)
                break
            except queue.Empty:
                if Path(stop).exists():
                    worker.stop()
        worker.stop()
        worker.wait()
        if said is not None:
            ended: dict[str, Any] = said["cells"][0]
            return ended
        return {"cell": name, "state": "error", "message": str(worker.death()), "exit_code": 1}


def require_ray() -> Any:
    """Return Ray, or say what to install.

    Raises:
        RecipeError: it is missing.
    """
    try:
        import ray
    except ImportError:
        raise RecipeError(
            "`--executor ray` needs Ray, which is not installed: `pip install 'sft-engine[ray]'` here and on "
            "every machine of the cluster"
        ) from None
    return ray
