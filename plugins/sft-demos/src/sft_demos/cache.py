"""The cache folder: where it is, and how several processes write to it safely."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from sft_engine import DataError


def cache_folder() -> Path:
    """Return where archives go: `demos` in $SFT_ENGINE_CACHE, else in the user's cache folder."""
    root = os.environ.get("SFT_ENGINE_CACHE") or user_cache_dir("sft-engine", appauthor=False)
    return Path(root).expanduser().absolute() / "demos"


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, a file or folder in the cache; other processes wait.

    Raises DataError if the folder of `target` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            yield
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}): make room there, or set "
            "SFT_ENGINE_CACHE to a folder that you may write to."
        ) from error


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, on the same file system, and remove it at the end.

    Call it inside `exclusive(target)`: it also removes what a killed process left behind.
    """
    prefix = f".{target.name}.partial-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
        yield Path(folder)
