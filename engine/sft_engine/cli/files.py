"""Files that verbs write: whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sft_engine.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: str) -> Iterator[IO[str]]:
    """Open a file that takes its name when all was written, and is gone if anything fails.

    Raises:
        OutputError: it cannot be written, or the disk is full.
    """
    final = Path(path)
    special = final.exists() and not final.is_file()  # /dev/stdout must not be replaced
    target = final if special else final.with_name(f".tmp-{final.name}-{os.getpid()}")
    try:
        with target.open("w", encoding="utf-8", newline="") as file:
            yield file
        if not special:
            target.replace(final)
    except OSError as error:
        if error.errno in FULL or error.filename == os.fspath(target):
            raise OutputError(
                f"{path} cannot be written: {error.strerror or error}; use another --output."
            ) from error
        raise
    finally:
        if not special:
            with suppress(OSError):
                target.unlink()
