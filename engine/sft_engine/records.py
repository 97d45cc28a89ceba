"""metrics.jsonl and the other small files of a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine import launch
from sft_engine.errors import Interrupted, OutputError
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from io import FileIO

    from sft_engine.flow import Run

HOPELESS = "hopeless"
"""How the reason in report.json begins for which a study stopped a run early."""

GIVEN_UP = ("DivergedError", "OutOfMemoryError")
"""Errors in run.json that are a result of a run, not a mistake of the user."""

_REPEATABLE = (
    "libraries",
    "plugins",
    "python",
    "platform",
    "device",
    "device_name",
    "precision",
    "processes",
    "threads",
    "seeds",
    "data",
    "parameters",
    "optimizer",
)
"""Facts in run.json that hold for several runs."""

LIBRARIES = (
    "sft-engine",
    "torch",
    "accelerate",
    "transformers",
    "timm",
    "datasets",
    "torchmetrics",
)


@dataclass
class Recorder:
    """Writes records to metrics.jsonl, the trackers and the console.

    Args:
        run: The run; only its rank 0 writes.
        show: Called with each record, to show progress.
    """

    run: Run
    show: Callable[[dict[str, Any]], None]
    _file: FileIO | None = None

    @property
    def path(self) -> Path:
        """Where records go."""
        return self.run.folder / "metrics.jsonl"

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record.

        Raises:
            OutputError: the file cannot be written.
        """
        if not self.run.is_main:
            return
        # Opening it anew for each record would cost more than writing it.
        self._file = self._file or open_lines(self.path)
        append_line(self._file, self.path, record)
        self.show(record)
        if self.run.hooks.sft_log is not None:
            self.run.hooks.sft_log(run=self.run, record=record)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def size(self) -> int:
        """Return the bytes written so far, which a checkpoint remembers."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Drop records written after the checkpoint that the run resumes from."""
        if self.run.is_main and self.path.exists():
            os.truncate(self.path, size)


def open_lines(path: Path) -> FileIO:
    """Open a file to append lines to it, each of which is there once it is written.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise cannot_write(path, error) from error


def append_line(file: FileIO, path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line, whole or not at all; NaN is written as NaN.

    Raises:
        OutputError: the file cannot be written.
    """
    line = f"{json.dumps(record)}\n".encode()
    written = 0
    try:
        while written < len(line):
            written += file.write(line[written:])
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, path.stat().st_size - written)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Say why a file of a run folder cannot be written."""
    return OutputError(
        f"cannot write {path}: {reason_of(error)}, then `sft-engine resume`, or `run` again if the run "
        "had not begun"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` that takes its place once the block is done; nothing is left of it otherwise."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file, given at once or in pieces, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with _replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_asked(path: Path, content: bytes) -> None:
    """Write the file that `--output` names, whole or not at all; its folder is made if only that is missing.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with _replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {reason_of(error)}, or choose another --output"
        ) from error


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted in a folder."""
    remove([*folder.glob(".tmp-*"), *folder.glob(".del-*")])


def remove(paths: Iterable[Path]) -> None:
    """Delete files and folders as far as that is possible."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def update_json(path: Path, changes: dict[str, Any]) -> None:
    """Change keys of a JSON file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


@contextlib.contextmanager
def recorded_end(folder: Path) -> Iterator[None]:
    """Write in run.json how a run ended: torchrun returns 1 whatever its processes return.

    `status` is `done`, `interrupted` or `failed`, beside `exit_code`, `error` and `message`; it stays
    `running` if the process was killed.
    """
    try:
        yield
    except BaseException as error:
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        code = getattr(error, "exit_code", 1)
        _write_end(folder, status, code, type(error).__name__, str(error))
        raise
    _write_end(folder, "done", 0, "", "")


def _write_end(folder: Path, status: str, code: int, error: str, message: str) -> None:
    path = folder / "run.json"
    end = {"status": status, "exit_code": code, "error": error, "message": message}
    # The disk may be full: what ended the run is what the user has to hear.
    with contextlib.suppress(OutputError, OSError, ValueError):
        if launch.rank() == 0 and path.exists():
            update_json(path, end)


def failure_of_main(folder: Path) -> dict[str, Any] | None:
    """Return what rank 0 wrote about its failure, as `ranks.report_of` does; None if it did not fail."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if run.get("status") not in ("failed", "interrupted"):
        return None
    return {"rank": 0, "type": run["error"], "message": run["message"], "notes": []}


def provenance(run: Run, precision: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return what is needed to repeat the run: versions, device, seeds, data, command."""
    import torch

    plugins = {
        a.planned.entry.distribution: a.planned.entry.version
        for a in run.active
        if a.planned.entry.distribution != "sft-engine"
    }
    return {
        "libraries": library_versions(),
        "plugins": plugins,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(run.device),
        "device_name": _device_name(run),
        "precision": precision,
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "seeds": vars(run.seeds),
        "data": fingerprints,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "optimizer": _flavour(run),
        "layer_groups": {g.name: len(g.parameters) for g in run.layer_groups},
        "command": sys.argv,
    }


def facts_in_common(folders: Iterable[Path]) -> dict[str, Any]:
    """Return what run.json says alike in all of these run folders; within `seeds` and the like, too.

    How each was started is left out: in a study a process of its own did that.
    """
    found: dict[str, Any] | None = None
    for folder in folders:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        found = facts if found is None else _alike(found, facts)
    known = found or {}
    return {name: value for name, value in known.items() if name in _REPEATABLE and value != {}}


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are equal in both; of objects, those of their own."""
    both = {name: (one[name], other[name]) for name in one if name in other}
    return {
        name: _alike(*pair) if all(isinstance(each, dict) for each in pair) else pair[0]
        for name, pair in both.items()
        if pair[0] == pair[1] or all(isinstance(each, dict) for each in pair)
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the engine and of the libraries that decide a run's numbers."""
    return {name: _version(name) for name in LIBRARIES if _version(name)}


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return ""


def _device_name(run: Run) -> str:
    import torch

    if run.device.type == "cuda":
        return torch.cuda.get_device_name(run.device)
    return platform.processor() or platform.machine()


def _flavour(run: Run) -> str:
    """Name the optimizer and its implementation: fused and for-loop differ in the last bits."""
    group = run.optimizer.param_groups[0]
    flavour = "fused" if group.get("fused") else "foreach" if group.get("foreach") else "default"
    return f"{type(run.optimizer).__name__} ({flavour})"
