"""Locks that a process loses when it dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self


class FileLock:
    """An exclusive lock on a file, by `flock`: the system releases it at the end of the process.

    Args:
        path: Of the lock's own file, which stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; without `wait` return False where another holds it."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._file)
        self._file = -1

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class JournalLock(FileLock):
    """The lock of a journal with a line an entry; takes away a line that a killed process left torn.

    Optuna's own locks are files that stay when a process is killed, and a torn line would make its
    journal unreadable as soon as the next one is appended.

    Args:
        path: Of the lock's own file, which stays.
        journal: The file that it guards.
    """

    def __init__(self, path: Path, journal: Path) -> None:
        super().__init__(path)
        self.journal = journal

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock, and cut the journal after its last whole line."""
        taken = super().acquire(wait=wait)
        if taken and self.journal.exists():
            content = self._tail()
            torn = len(content) - (content.rfind(b"\n") + 1)
            if torn:
                os.truncate(self.journal, self.journal.stat().st_size - torn)
        return taken

    def _tail(self) -> bytes:
        """Return the end of the journal: all of it, or as much as surely holds a line's end."""
        with self.journal.open("rb") as file:
            size, length = self.journal.stat().st_size, 1 << 10
            while True:
                file.seek(max(0, size - length))
                content = file.read()
                if b"\n" in content or length >= size:
                    return content
                length *= 8
