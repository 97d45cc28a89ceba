"""Child processes that run `sft-engine`, each forked from a server that has imported everything.

A child is a process of its own in every respect that matters here: it may be killed, it has its own
exit code, signal handlers and process group. It starts in a fraction of a second.
"""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sft_engine.testing import install_fake

HERE = Path(__file__).parent
PATIENCE = 120
"""Seconds after which a child that has not ended is a failure of the test."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "sft_engine.training",
        "sft_engine.cli.run",
        "sft_engine.cli.resume",
        "sft_engine.catalog",
        "sft_engine.console",
        "sft_engine.schema",
        "sft_engine.verbs",
        "sft_engine.testing.tiny",
        "sft_engine.builtin.optimizers",
        "sft_engine.builtin.schedules",
        "sft_engine.builtin.stopping",
        "sft_engine.builtin.tasks",
        "sft_engine.builtin.trackers",
        "accelerate",
        "datasets",
        "pydantic.main",
        "pydantic.type_adapter",
        "tomlkit",
        "torch._dynamo",
        "torchmetrics.classification",
    ]
)


@dataclass(frozen=True)
class Trap:
    """Where a child kills itself, or from where on its disk is full.

    Args:
        stage: `start` (until training begins), `save` (the first checkpoint of the process), `final`
            (after training).
        at: Before which of the file operations of that stage, counted from 0.
        log: File that lists the operations seen.
        full: The disk is full from there on, instead of the kill.
    """

    stage: str
    at: int
    log: Path
    full: bool = False


@dataclass
class Child:
    """A started child.

    Args:
        process: The process.
        output: What it prints.
    """

    process: BaseProcess
    output: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait(self) -> int:
        """Return the exit code; that of a signal is negative."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"the child did not end:\n{self.text}")
        return code


def start(folder: Path, *arguments: str, trap: Trap | None = None, largest_file: int = -1) -> Child:
    """Start `sft-engine` in a folder, with the plugin of `victims.py` installed.

    Args:
        folder: Where it is started.
        arguments: Of the command line.
        trap: Where it dies, or its disk is full.
        largest_file: Bytes that a file may have; -1 for any number.
    """
    site = install(folder)
    if str(HERE) not in sys.path:  # the child takes over sys.path
        sys.path.insert(0, str(HERE))
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    process = SERVER.Process(
        target=main, args=(folder, site, output, arguments, trap, largest_file)
    )
    process.start()
    return Child(process, output)


def install(folder: Path) -> Path:
    """Install the plugin of `victims.py` in a folder of its own, and return that."""
    site = folder / "site"
    if not site.exists():
        install_fake(site, "sft-victims", {}, entry_points={"victims": "victims"})
    return site


def call(folder: Path, *arguments: str, **options: Any) -> Child:
    """Start `sft-engine` and wait for its end."""
    child = start(folder, *arguments, **options)
    child.wait()
    return child


# --- in the child ---------------------------------------------------------------------------------


def main(
    folder: Path,
    site: Path,
    output: Path,
    arguments: tuple[str, ...],
    trap: Trap | None,
    largest_file: int,
) -> None:
    """Run the command line as a shell would: own process group, output to a file."""
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a shell starts
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(folder)
    os.environ["SFT_ENGINE_PLUGINS"] = "victims"
    sys.path.insert(0, str(site))
    sys.argv = ["sft-engine", *arguments]
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if trap is not None:
        set_trap(trap, folder)
    from sft_engine.cli import main as sft_engine

    sft_engine()


DELETIONS = ("os.remove", "os.rmdir", "os.truncate")
OPERATIONS = ("open", "os.mkdir", "os.rename", *DELETIONS)


class Full(OSError):
    """The disk is full."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class Watch:
    """Counts the file operations of a stage, and acts before one of them.

    Args:
        trap: Which.
        armed: Whether the stage is on.
    """

    trap: Trap
    armed: bool
    seen: int = 0
    full: bool = False

    def __post_init__(self) -> None:
        self.log = os.open(self.trap.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reached(self, label: str, first: Callable[[], object] = lambda: None) -> None:
        """Take note of an operation that is about to be; `first` is done before the kill."""
        harmless = self.trap.full and label.startswith(DELETIONS)
        if self.full and not harmless:
            raise Full
        if not self.armed or harmless:
            return
        os.write(self.log, f"{label}\n".encode())
        self.seen += 1
        if self.seen > self.trap.at:
            self.armed = False
            first()
            if not self.trap.full:
                os.kill(os.getpid(), signal.SIGKILL)
            self.full = True
            raise Full


def set_trap(trap: Trap, folder: Path) -> None:
    """Let this process die, or its disk be full, at one of the file operations of a stage."""
    watch = Watch(trap, armed=trap.stage == "start")

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event not in OPERATIONS:
            return
        path = os.path.abspath(str(arguments[0]))  # noqa: PTH100
        # `shutil.rmtree` names what it deletes relative to an open folder.
        within = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        reads = event == "open" and arguments[1] in ("r", "rb", "rb+", None)
        if (within or path.startswith(f"{folder}/run")) and not reads:
            watch.reached(f"{event} {Path(path).name}")

    watch_writers(watch.reached)
    watch_stages(trap.stage, watch)
    sys.addaudithook(audit)


def watch_writers(reached: Callable[..., None]) -> None:
    """Watch what raises no audit event: fsync, lines of records, and the writer of safetensors, also half-way."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from sft_engine import checkpoint, records
    from sft_engine.testing import tiny

    open_lines = records.open_lines

    class Lines(io.FileIO):
        def write(self, line):
            reached(f"append {self.path.name}")
            return super().write(line)

    def watched_lines(path):
        # Opened once, by the engine: a second time would be an operation that only the test makes.
        with open_lines(path) as opened:
            lines = Lines(os.dup(opened.fileno()), "ab")
        lines.path = path
        return lines

    records.open_lines = watched_lines

    def watched(tensors, path):
        def half() -> None:
            save_file(tensors, path)
            os.truncate(path, Path(path).stat().st_size // 2)

        try:
            reached(f"begin {Path(path).name}")
            reached(f"half {Path(path).name}", half)
        except Full as error:  # as the library reports it
            reason = f"I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(f"Error while serializing: {reason}") from None
        save_file(tensors, path)

    checkpoint.save_file = tiny.save_file = watched  # type: ignore[assignment]
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        reached("fsync")
        fsync(descriptor)

    os.fsync = watched_fsync  # type: ignore[assignment]


def watch_stages(stage: str, watch: Watch) -> None:
    """Arm the trap in its stage alone."""
    from sft_engine.checkpoint import Keeper
    from sft_engine.loop import Loop

    save, train = Keeper.save, Loop.train

    def watched_save(self, run):
        watch.armed = stage == "save" and not watch.seen
        save(self, run)
        watch.armed = False

    def watched_train(self):
        watch.armed = False
        reason = train(self)
        watch.armed = stage == "final"
        return reason

    Keeper.save, Loop.train = watched_save, watched_train  # type: ignore[method-assign]
