"""metrics.jsonl and the other small files of a run folder."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import OutputError

if TYPE_CHECKING:
    from sft_engine.flow import Run

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
        append_line(self.path, record)
        self.show(record)
        if self.run.hooks.sft_log is not None:
            self.run.hooks.sft_log(run=self.run, record=record)

    def size(self) -> int:
        """Return the bytes written so far, which a checkpoint remembers."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Drop records written after the checkpoint that the run resumes from."""
        if self.run.is_main and self.path.exists():
            os.truncate(self.path, size)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line; NaN is written as NaN.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room, then `sft-engine resume`"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def provenance(run: Run, precision: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return what is needed to repeat the run: versions, device, seeds, data, command."""
    import torch

    plugins = {
        a.planned.entry.distribution: a.planned.entry.version
        for a in run.active
        if a.planned.entry.distribution != "sft-engine"
    }
    return {
        "libraries": {name: _version(name) for name in LIBRARIES if _version(name)},
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
