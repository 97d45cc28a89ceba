"""What the processes of one run tell each other: failures, flags, sums.

A failure on one rank must end all of them, with the same sentence and the same exit code. There are two
ways. `together` runs a part in which no rank waits for another: afterwards every rank knows whether
it went well everywhere. `shared_end` is for the rest: who fails leaves a note, and who then loses the
connection reads it: in the store of the process group, or, as that may have ended with rank 0, in
the run folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from sft_engine import errors
from sft_engine.errors import SftError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

T = TypeVar("T")

_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)
_numbers = itertools.count(1)
"""Of the runs of this process: notes of one run do not concern the next."""


# --- exchanging -----------------------------------------------------------------------------------


def everyones(accelerator: Accelerator, value: T) -> list[T]:
    """Return the value of every rank, by rank."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def from_main(accelerator: Accelerator, value: T) -> T:
    """Return the value of rank 0."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    result: T = broadcast_object_list([value])[0]
    return result


def sum_of_all(vector: Tensor) -> Tensor:
    """Sum a vector in host memory over all ranks, in place, without waiting for a GPU."""
    import torch.distributed

    torch.distributed.all_reduce(vector, group=_host_group())
    return vector


def largest_of_all(vector: Tensor) -> Tensor:
    """Take the element-wise maximum of a vector in host memory over all ranks, in place."""
    import torch.distributed

    torch.distributed.all_reduce(vector, torch.distributed.ReduceOp.MAX, group=_host_group())
    return vector


_host: dict[Any, Any] = {}


def _host_group() -> Any:
    """Return a group that reduces host memory: the default one if it can, else one beside it."""
    from torch import distributed

    default = distributed.group.WORLD
    if default not in _host:
        able = "cpu:" in str(distributed.get_backend_config())
        _host[default] = None if able else distributed.new_group(backend="gloo")
    return _host[default]


# --- failing together -----------------------------------------------------------------------------


@contextlib.contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Run a part that makes no collective call; if it fails on one rank, it fails on all.

    Raises:
        SftError: what failed on the first rank that failed; the own exception where there is one.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        own = error
    reports = everyones(
        accelerator, None if own is None else report_of(own, accelerator.process_index)
    )
    if own is not None:
        if isinstance(own, SftError):  # what a lower rank says too is said once
            before = reports[: accelerator.process_index]
            own.elsewhere = any(r is not None and r["message"] == str(own) for r in before)
        raise own
    for report in reports:
        if report is not None:
            raise failure_elsewhere(report)


def one_rank_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Let one process of each machine fill the caches before the others read them."""
    results: list[T] = []
    for turn in (True, False):
        with together(accelerator):
            if accelerator.is_local_main_process is turn:
                results.append(action())
        if accelerator.num_processes == 1:
            break
    return results[0]


@contextlib.contextmanager
def shared_end(read_note: Callable[[], dict[str, Any] | None]) -> Iterator[None]:
    """Run a part in which ranks wait for each other; if it fails on one rank, all know why.

    Args:
        read_note: Returns what rank 0 has written about its own failure, as `report_of` does.

    Raises:
        SftError: another rank failed; with its sentence and exit code.
    """
    note = f"sft_engine/failure/{next(_numbers)}"
    try:
        yield
    except Exception as error:
        store = _store()
        if store is None:
            raise
        if not _lost_connection(error):
            _leave(store, note, error)
            raise
        raise _reason(store, note, read_note) from error


def report_of(error: Exception, rank: int) -> dict[str, Any]:
    """Return what other ranks need to know of an exception."""
    return {
        "rank": rank,
        "type": type(error).__name__,
        "message": str(error),
        "notes": list(getattr(error, "__notes__", [])),
    }


def failure_elsewhere(report: dict[str, Any]) -> SftError:
    """Return the exception with which a rank ends because another one has failed."""
    kind = getattr(errors, report["type"], None)
    if isinstance(kind, type) and issubclass(kind, SftError):
        error: SftError = kind(report["message"])
    else:
        error = SftError(
            f"rank {report['rank']} failed with {report['type']}: {report['message']}; its own "
            "output shows where"
        )
    error.elsewhere = True
    for note in report["notes"]:
        error.add_note(note)
    return error


def _store() -> Any:
    """Return the store of the process group; None where there is one process."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size() == 1:
        return None
    return distributed.distributed_c10d._get_default_store()  # noqa: SLF001 (no public way)


def _lost_connection(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def _leave(store: Any, note: str, error: Exception) -> None:
    """Leave the reason for the others; the first one who fails is right."""
    from torch import distributed

    with contextlib.suppress(Exception):
        store.compare_set(note, "", json.dumps(report_of(error, distributed.get_rank())))


def _reason(store: Any, note: str, read_note: Callable[[], dict[str, Any] | None]) -> SftError:
    report = None
    with contextlib.suppress(Exception):  # the store may have ended with the process that kept it
        # Who fails leaves the note before its connections close: there is nothing to wait for.
        report = json.loads(store.get(note)) if store.check([note]) else None
    report = report or read_note()
    if report is not None:
        return failure_elsewhere(report)
    error = SftError(
        "another process of this run ended without a word: it was killed, perhaps for want of memory; "
        "`sft-engine resume` goes on from the newest checkpoint"
    )
    error.elsewhere = True
    return error
