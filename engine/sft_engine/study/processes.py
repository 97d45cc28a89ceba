"""Executors: carry out cells in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sft_engine.errors import Interrupted, SftError
from sft_engine.study.worker import BUSY, INTERRUPTED

if TYPE_CHECKING:
    from sft_engine.interruption import Signals

Answer = dict[str, Any]
Tell = Callable[[Answer], None]

POLL = 0.2
"""Seconds between two looks whether a signal came."""
AGAIN = 2.0
"""Seconds before a cell is asked for again that another process is carrying out."""
PATIENCE = 600.0
"""Seconds that workers get to save their runs when the study is to stop."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class Executor(Protocol):
    """Carries out cells, each with the lock of its own."""

    def carry_out(self, folder: Path, names: Sequence[str], tell: Tell, signals: Signals) -> None:
        """Carry out the cells of a study folder, and tell how each ended.

        Raises:
            Interrupted: a signal came; what was under way has saved a checkpoint.
            SftError: a run stopped for a reason that the user has to put right.
        """


class InProcess:
    """One cell after the other in this process."""

    def carry_out(self, folder: Path, names: Sequence[str], tell: Tell, signals: Signals) -> None:
        """Carry them out."""
        from sft_engine.replay.shared import SharedTrunk
        from sft_engine.study.worker import answers

        rounds, trunk = Rounds(names), SharedTrunk()
        while given := rounds.next(together=trunk.in_use):
            signals.check()
            for said in answers(folder, given, signals, trunk):
                rounds.settle(said, tell)


@dataclass
class Rounds:
    """Which cells are still to be begun.

    Args:
        names: Of the cells.
    """

    names: Sequence[str]
    under_way: set[str] = field(default_factory=set)
    _left: deque[str] = field(init=False)
    _wait: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._left = deque(self.names)

    @property
    def done(self) -> bool:
        """Whether every cell has ended."""
        return not self._left and not self.under_way

    def ready(self, share: int = 0) -> list[str]:
        """Return cells to begin now; none if there is none, or all are in other hands.

        Args:
            share: For one of how many workers, if it can carry out several at once; 0 for one cell.
        """
        if not self._left or time.monotonic() < self._wait:
            return []
        number = -(-len(self._left) // share) if share else 1
        given = [self._left.popleft() for _ in range(number)]
        self.under_way.update(given)
        return given

    def next(self, *, together: bool = False) -> list[str]:
        """Wait for cells to begin, all of them or one; none if every cell has ended."""
        while not (given := self.ready(int(together))) and not self.done:
            time.sleep(POLL)
        return given

    def settle(self, said: Answer, tell: Tell) -> None:
        """Take note of how a cell ended.

        Raises:
            Interrupted: a signal came.
            SftError: it could not be carried out.
        """
        name, state = said["cell"], said["state"]
        self.under_way.discard(name)
        if state == BUSY:
            self._left.append(name)
            self._wait = time.monotonic() + AGAIN
        elif state == INTERRUPTED:
            raise Interrupted(f"{name} was interrupted: the same command goes on")
        elif state == "error":
            error = SftError(said["message"])
            error.exit_code = int(said["exit_code"])
            raise error
        else:
            tell(said)


class Worker:
    """A process of `sft_engine.study.worker`.

    Args:
        folder: Of the study.
        log: File for what libraries print.
        answers: Where its answers go, as (worker, answer); None when it has ended.
        threads: Of each library in it.
    """

    def __init__(
        self,
        folder: Path,
        log: Path,
        answers: queue.Queue[tuple[Worker, Answer | None]],
        threads: int,
    ) -> None:
        self.log = log
        self.names: Sequence[str] = ()
        self.shares = False  # whether its runs have a trunk in common
        self._answers = answers
        with log.open("w") as file:
            # A session of its own: Ctrl-C is for the study, which then stops its workers.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sft_engine.study.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment(threads),
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._answers.put((self, json.loads(line)))
        self.process.wait()
        self._answers.put((self, None))

    def begin(self, names: Sequence[str]) -> None:
        """Have it carry out cells."""
        assert self.process.stdin is not None
        self.names = names
        with contextlib.suppress(BrokenPipeError):  # it has ended: that is told by `_read`
            self.process.stdin.write(json.dumps(names) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Have it save the run that is under way, and end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def wait(self) -> None:
        """Wait for its end; kill it if it does not come."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def death(self) -> SftError:
        """Say how it ended, with its last line."""
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return SftError(
            f"the process that carried out {', '.join(self.names)} {how} ({lines[-1]}; all of it in {self.log}): the "
            "same command goes on"
        )


def environment(threads: int) -> Mapping[str, str]:
    """Return this process's environment with a number of threads for the libraries of another.

    What can be imported here, from outside of Python's own folders, can be imported there.
    """
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = (sys.prefix, sys.base_prefix)
    more = [path or str(Path.cwd()) for path in sys.path if not path.startswith(own)]
    given = {"PYTHONPATH": os.pathsep.join(filter(None, dict.fromkeys([*known, *more])))}
    return {**os.environ, **given, **dict.fromkeys(_THREADS, str(threads))}


@dataclass
class Local:
    """Cells in processes of this machine.

    Args:
        jobs: Processes.
        threads: Of each.
    """

    jobs: int
    threads: int

    def carry_out(self, folder: Path, names: Sequence[str], tell: Tell, signals: Signals) -> None:
        """Carry them out."""
        rounds = Rounds(names)
        answers: queue.Queue[tuple[Worker, Answer | None]] = queue.Queue()
        jobs = min(self.jobs, len(names))
        with self._workers(folder, jobs, answers) as idle:
            while not rounds.done:
                if signals.received:
                    raise Interrupted("the study was interrupted: the same command goes on")
                while idle and (given := rounds.ready(jobs if idle[-1].shares else 0)):
                    idle.pop().begin(given)
                try:
                    worker, said = answers.get(timeout=POLL)
                except queue.Empty:
                    continue
                if said is None:
                    raise worker.death()
                idle.append(worker)
                worker.shares = said["shares"]
                for each in said["cells"]:
                    rounds.settle(each, tell)

    @contextlib.contextmanager
    def _workers(
        self, folder: Path, number: int, answers: queue.Queue[tuple[Worker, Answer | None]]
    ) -> Iterator[list[Worker]]:
        """Start workers, and stop them at the end, however it comes."""
        logs = folder / "locks"
        tag = os.getpid()  # several commands may work on one study
        started: list[Worker] = []
        try:
            for index in range(number):
                log = logs / f"worker-{tag}-{index}.log"
                started.append(Worker(folder, log, answers, self.threads))
            yield list(started)
        finally:
            for worker in started:
                worker.stop()
            for worker in started:
                worker.wait()
                if worker.process.returncode == 0:
                    worker.log.unlink(missing_ok=True)
