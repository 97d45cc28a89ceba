"""Checkpoints: written whole or not at all, read back bit for bit, without pickle.

    checkpoints/step-00001200/
        model.safetensors       parameters and buffers; tied ones once
        training.safetensors    optimizer, components, generators
        state.json              everything else, and size and CRC-32 of the other files; written last

A folder is filled under another name, synchronized to disk and then renamed. There is no file that
says which one is the latest: the newest complete folder is.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sft_engine import ranks, sharding
from sft_engine.errors import CheckpointError, DivergedError, OutputError
from sft_engine.records import sweep
from sft_engine.sentences import reason_of
from sft_engine.state import clone, digest, pack, separate_aliases, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.flow import Active, Run

FORMAT = 1
SECONDS_IN_MEMORY = 120.0
"""How long a checkpoint that is kept in memory may wait until it is written."""
_MODEL, _TRAINING, _STATE = "model.safetensors", "training.safetensors", "state.json"


# --- what a run's state is ------------------------------------------------------------------------


def capture(run: Run) -> dict[str, Any]:
    """Return the whole state of a run as nested references (collective under FSDP)."""
    sharding.share_buffers(run)
    model, optimizer = sharding.state_of(run)
    stateful = [active for active in run.active if _is_stateful(active.component)]
    return {
        "position": run.clock.position,
        "stop": run.control.stop,
        "metrics": run.metrics,
        "components": {active.key: _component_state(run, active) for active in stateful},
        "generators": _generators(run),
        "optimizer": optimizer,
        "model": model,
    }


def restore(run: Run, state: dict[str, Any], *, generators: bool = True) -> None:
    """Put a captured state back into a run.

    Raises:
        CheckpointError: parameters or components of the checkpoint and of the recipe differ.
    """
    _check_components(run, state["components"])
    sharding.load_state(run, state["model"], state["optimizer"])
    for active in run.active:
        if active.key in state["components"]:
            active.component.load_state_dict(_own_state(run, state["components"][active.key]))
    for name, value in state["position"].items():
        setattr(run.clock, name, value)
    run.clock.follow(run.phase)
    run.control.stop = state["stop"]
    run.metrics = state["metrics"]
    if generators:
        _set_generators(run, state["generators"])


def require_finite(run: Run, model: Mapping[str, Tensor] | None = None) -> None:
    """Refuse weights that are not finite: a step may overflow though its gradient did not.

    Args:
        run: The run.
        model: Its whole weights, if they are at hand (collective under FSDP otherwise).

    Raises:
        DivergedError: a parameter is not finite.
    """
    model = sharding.state_of(run)[0] if model is None else model
    names = [name for name, _ in run.model.named_parameters() if model[name].is_floating_point()]
    norms = torch._foreach_norm([model[name].detach() for name in names])  # noqa: SLF001
    bad = [name for name, norm in zip(names, norms, strict=True) if not norm.isfinite()]
    if bad:
        raise DivergedError(
            f"the weights are no longer finite after step {run.clock.step} (`{bad[0]}` is the first of "
            f"{len(bad)}): lower `optimizer.lr`, or raise `schedule.warmup`; the newest checkpoint is "
            "from before"
        )


def fingerprint(run: Run) -> str:
    """Return the SHA-256 of all that decides the rest of the run: equal runs have equal ones."""
    state = capture(run)
    return digest({k: state[k] for k in ("position", "components", "optimizer", "model")})


def _is_stateful(component: Any) -> bool:
    return hasattr(component, "state_dict") and hasattr(component, "load_state_dict")


def _component_state(run: Run, active: Active) -> dict[str, Any]:
    """Return a component's state; that of every rank where they differ, as counters of batches do."""
    entry = active.planned.entry
    state, sharded = sharding.whole_state(active.component.state_dict())
    saved = {"name": entry.name, "version": entry.version, "state": state}
    if sharded:
        saved["sharded"] = sharded
    several = run.accelerator.num_processes > 1
    if several and len(set(ranks.everyones(run.accelerator, digest(state)))) > 1:
        saved["ranks"] = ranks.everyones(run.accelerator, state)
        saved["state"] = saved["ranks"][0]
    return saved


def _own_state(run: Run, saved: dict[str, Any]) -> Any:
    """Return what this rank saved; what rank 0 did if there were more or fewer of them."""
    own = saved.get("ranks", [])
    same = len(own) == run.accelerator.num_processes
    state = own[run.accelerator.process_index] if same else saved["state"]
    return sharding.shard_state(run, state, saved.get("sharded", []))


def _check_components(run: Run, saved: dict[str, Any]) -> None:
    wanted = {a.key: a.planned.entry.name for a in run.active if _is_stateful(a.component)}
    found = {key: value["name"] for key, value in saved.items()}
    if wanted != found:
        raise CheckpointError(
            f"the checkpoint holds the state of {found or 'no component'}, the recipe needs that of "
            f"{wanted or 'none'}: resume with the recipe that the run was started with"
        )


def _generators(run: Run) -> list[Any]:
    own = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (components may draw from it)
        "torch": torch.get_rng_state(),
    }
    if run.device.type == "cuda":
        own["device"] = torch.cuda.get_rng_state(run.device)
    return ranks.everyones(run.accelerator, own)


def _set_generators(run: Run, generators: list[Any]) -> None:
    if len(generators) != run.accelerator.num_processes:
        # Another number of processes cannot be bit-equal anyway; noise is a function of position.
        return
    own = generators[run.accelerator.process_index]
    version, numbers, gauss = own["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(own["numpy"])  # noqa: NPY002
    torch.set_rng_state(own["torch"])
    if "device" in own:
        torch.cuda.set_rng_state(own["device"], run.device)


# --- the folder -----------------------------------------------------------------------------------


@dataclass
class Keeper:
    """Saves, finds and retires the checkpoints of a run.

    Args:
        folder: `RUN/checkpoints`.
        keep: Newest checkpoints kept.
        extra: JSON values saved beside the state, such as the best metric so far.
        snapshot: State that a component may roll back to; kept in memory and in checkpoints.
        notice: Called with a sentence when a damaged checkpoint is passed over.
        current: Step of the checkpoint that holds the run's state, if it was just saved or read.
    """

    folder: Path
    keep: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    snapshot: dict[str, Any] | None = None
    notice: Callable[[str], None] = print
    current: int = -1

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, run: Run) -> None:
        """Save the run; rank 0 writes, all ranks learn whether it worked.

        Raises:
            DivergedError: a weight is not finite.
            OutputError: the folder cannot be written, on any rank's account.
        """
        if self.current == run.clock.step:
            # A signal right after a save: replacing it would leave nothing for a moment.
            return
        state = capture(run)
        require_finite(run, state["model"])
        with ranks.together(run.accelerator):
            if run.is_main:
                self._write_and_retire(run.clock.step, state)
        self.current = run.clock.step

    def _write_and_retire(self, step: int, state: dict[str, Any]) -> None:
        try:
            self._write(step, state, self.extra)
            self._retire()
        except OSError as error:
            raise OutputError(self._explain(step, error)) from error

    def _write(self, step: int, state: dict[str, Any], extra: dict[str, Any]) -> None:
        final = self.path(step)
        temporary = self.folder / f".tmp-{final.name}-{os.getpid()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        temporary.mkdir()
        try:
            _write_files(temporary, state, extra, self.snapshot)
            if final.exists():
                _remove(final)
            temporary.rename(final)
            _sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _explain(self, step: int, error: OSError) -> str:
        steps = self.steps()
        start = f"the checkpoint of step {steps[-1]}" if steps else "the beginning"
        return (
            f"cannot write the checkpoint of step {step} in {self.folder}: {reason_of(error)}, then "
            f"`sft-engine resume {self.folder.parent}` goes on from {start}"
        )

    def _retire(self) -> None:
        best = self.extra.get("best", {}).get("step")
        steps = self.steps()
        for step in steps[: -self.keep]:
            if step != best:
                _remove(self.path(step))

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, oldest first."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(name.removeprefix("step-")) for name in names)

    def read(self, step: int) -> dict[str, Any]:
        """Read and verify a checkpoint.

        Raises:
            CheckpointError: it is incomplete or damaged.
        """
        return _read_files(self.path(step))

    def newest(self) -> dict[str, Any]:
        """Read the newest complete checkpoint, passing over damaged ones.

        Raises:
            CheckpointError: there is none.
        """
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except CheckpointError as error:
                self.notice(f"passed over a damaged checkpoint: {error}")
        raise CheckpointError(
            f"no complete checkpoint in {self.folder}: start the recipe again with `sft-engine run`"
        )

    def flush(self) -> None:
        """See that whatever was saved is in the folder; it is."""

    def keep_snapshot(self, run: Run) -> None:
        """Remember the state in memory, for a component that may roll back."""
        self.snapshot = clone(_healing_part(capture(run)))

    def roll_back(self, run: Run) -> None:
        """Put weights, optimizer and components back to the snapshot; the position goes on."""
        if self.snapshot is None:
            raise CheckpointError("a component asked to roll back before there was a snapshot")
        state = {**capture(run), **clone(self.snapshot)}
        restore(run, state, generators=False)


@dataclass
class MemoryKeeper(Keeper):
    """Keeps the checkpoints of a run in memory, and writes them once in a while, and when the run is stopped.

    For runs that are so short that writing a checkpoint takes longer than the steps in between.
    """

    _states: dict[int, dict[str, Any]] = field(default_factory=dict)  # `extra` among them
    _written: float = field(default_factory=time.monotonic)

    def _write_and_retire(self, step: int, state: dict[str, Any]) -> None:
        rest = {name: value for name, value in state.items() if name != "model"}
        copied = clone({**rest, "extra": self.extra})
        self._states[step] = {**copied, "model": self._copied(state["model"])}
        best = self.extra.get("best", {}).get("step")
        for old in sorted(self._states)[: -self.keep]:
            if old != best:
                del self._states[old]
        if time.monotonic() - self._written > SECONDS_IN_MEMORY:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        there = self.steps()
        try:
            for step in sorted(self._states.keys() - set(there)):
                state = dict(self._states[step])
                self._write(step, state, state.pop("extra"))
            self._retire()
        except OSError as error:
            raise OutputError(self._explain(max(self._states), error)) from error
        self._written = time.monotonic()

    def read(self, step: int) -> dict[str, Any]:
        """Return a checkpoint; its weights are for copying alone."""
        if step not in self._states:
            return super().read(step)
        state = self._states[step]
        rest = {name: value for name, value in state.items() if name != "model"}
        return {**clone(rest), "model": state["model"], "snapshot": None}

    def _copied(self, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy weights, but those that are as they were in the checkpoint before."""
        before = self._states[max(self._states)]["model"] if self._states else {}
        return {
            name: before[name]
            if name in before and torch.equal(before[name], own)
            else own.detach().clone()
            for name, own in model.items()
        }


def _healing_part(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("components", "optimizer", "model")}


def _write_files(
    folder: Path, state: dict[str, Any], extra: dict[str, Any], snapshot: dict[str, Any] | None
) -> None:
    model, aliases = separate_aliases(state["model"])
    tensors: dict[str, Tensor] = {}
    rest = {name: value for name, value in state.items() if name != "model"}
    packed = pack({**rest, "snapshot": snapshot}, "", tensors)
    training, training_aliases = separate_aliases(tensors)
    _save_tensors(model, folder / _MODEL)
    _save_tensors(training, folder / _TRAINING)
    head = {
        "format": FORMAT,
        "state": packed,
        "extra": extra,
        "aliases": aliases,
        "training_aliases": training_aliases,
        "files": {name: _seal(folder / name) for name in (_MODEL, _TRAINING)},
    }
    with (folder / _STATE).open("w", encoding="utf-8") as file:
        json.dump(head, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors; safetensors reports a full disk as an error of its own."""
    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise as_os_error(error) from error


def as_os_error(error: SafetensorError) -> OSError:
    """Turn an error of the safetensors library into one that says what the system said."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error))


def _seal(path: Path) -> dict[str, int]:
    """Synchronize a file to disk and return its size and checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "crc32": _checksum(path)}


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _read_files(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        for name, seal in head["files"].items():
            path = folder / name
            if path.stat().st_size != seal["bytes"] or _checksum(path) != seal["crc32"]:
                raise CheckpointError(f"{path} is not what was written (size or checksum differ)")
        model, training = load_file(folder / _MODEL), load_file(folder / _TRAINING)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if head["format"] != FORMAT:
        raise CheckpointError(f"{folder} has format {head['format']}, this version reads {FORMAT}")
    model.update({alias: model[name] for alias, name in head["aliases"].items()})
    training.update({alias: training[name] for alias, name in head["training_aliases"].items()})
    state: dict[str, Any] = unpack(head["state"], training)
    return {**state, "model": model, "extra": head["extra"]}


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves nothing that looks complete."""
    doomed = folder.with_name(f".del-{folder.name}-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
