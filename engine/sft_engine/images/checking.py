"""All images of a split, looked at before training: which are broken, how large they are, their hash.

Every image is decoded once, in threads. What was found is kept in the user's cache under path, size and
time of the file (or under the hash of its bytes): the next run asks the file system alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from platformdirs import user_cache_dir

from sft_engine.columns import (
    IMAGE,
    IMAGE_DIGEST,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    is_list,
)
from sft_engine.errors import DataError
from sft_engine.file_columns import (
    holds_paths,
    path_of,
    portions,
    read,
    whole_rows,
    with_absolute_paths,
    with_facts,
)
from sft_engine.images.decoding import ImageError, decode
from sft_engine.images.examples import in_threads, undecoded

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT = "images-1"
_log = logging.getLogger("sft_engine")


@dataclass(frozen=True)
class Facts:
    """What is known of an image without decoding it again.

    Args:
        digest: Hash of the file's bytes, or of the array: 32 hex digits.
        width: In pixels, as it is seen (EXIF rotation applied).
        height: The same.
        problem: Why it cannot be used; empty if it can.
    """

    digest: str
    width: int = 0
    height: int = 0
    problem: str = ""


def located(rows: Dataset, split: str, folder: Path) -> Dataset:
    """Return the split with an image column that `decode` reads as it is: absolute paths, no objects.

    Args:
        rows: With the column `image`.
        split: Its name, for messages.
        folder: What relative paths start from.

    Raises:
        DataError: the column holds something else than paths, bytes or arrays.
    """
    rows = undecoded(rows, IMAGE)
    if holds_paths(rows, IMAGE):
        return with_absolute_paths(rows, IMAGE, folder)
    kind = rows.data.schema.field(IMAGE).type
    # Arrays are lists, or an extension type of `datasets`.
    if not (is_list(kind) or "binary" in str(kind) or isinstance(kind, pa.BaseExtensionType)):
        raise DataError(
            f"[data] split '{split}': the column '{IMAGE}' holds {kind}; allowed are paths, the bytes of "
            "images, or arrays: check data.columns."
        )
    return rows


def checked(rows: Dataset, split: str, *, skip: bool) -> Dataset:
    """Look at every image; return the split with hash, width and height of each as columns.

    Args:
        rows: As `located` returns them.
        split: Its name, for messages.
        skip: Leave out broken images with a warning for each; else they stop the run.

    Raises:
        DataError: images are broken, named with path and reason; or none is left.
    """
    if IMAGE_DIGEST in rows.column_names:
        return rows  # looked at before
    facts, paths = _facts_of(rows)
    columns: dict[str, tuple[Any, str]] = {
        IMAGE_DIGEST: ([each.digest for each in facts], "string"),
        IMAGE_WIDTH: (np.array([each.width for each in facts], dtype=np.int32), "int32"),
        IMAGE_HEIGHT: (np.array([each.height for each in facts], dtype=np.int32), "int32"),
    }
    looked = [(path, each.problem) for path, each in zip(paths, facts, strict=True)]
    return whole_rows(with_facts(rows, columns), split, ImageError, looked, skip=skip)


def _facts_of(rows: Dataset) -> tuple[list[Facts], list[str]]:
    """Return facts and path of every image, in the order of the rows."""
    facts: list[Facts] = []
    paths: list[str] = []
    with closing(_open_cache()) as cache:
        for values in portions(rows, IMAGE):
            paths += [path_of(value) for value in values]
            facts += _portion(values, cache)
    return facts, paths


def _portion(values: Sequence[Any], cache: _Cache) -> list[Facts]:
    keys = in_threads(_key, values)
    known = cache.get([key for key in keys if key])
    missing = [value for value, key in zip(values, keys, strict=True) if key not in known]
    fresh = iter(in_threads(look, missing))
    facts = [known[key] if key in known else next(fresh) for key in keys]
    found = zip(keys, facts, strict=True)
    cache.put({key: each for key, each in found if key and key not in known})
    return facts


def look(value: Any) -> Facts:
    """Decode an image, and return what there is to know of it; never raises for a broken one."""
    try:
        data = None if isinstance(value, list | np.ndarray) else read(value, ImageError)
        digest = _digest(json.dumps(value).encode() if data is None else data)
    except (ImageError, TypeError) as error:
        return Facts(digest="", problem=getattr(error, "reason", str(error)))
    try:
        image = decode(value if data is None else data)
    except ImageError as error:
        return Facts(digest=digest, problem=error.reason)
    return Facts(digest, image.width, image.height)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _key(value: Any) -> str:
    """Return under what the facts are kept: changes when the image does; empty if they are not kept."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _digest(value)
    if not isinstance(value, str):
        return ""
    try:
        status = Path(value).stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {Path(value).absolute()}"


# --- cache ---------------------------------------------------------------------------------------


def cache_file() -> Path:
    """Return where facts are kept: `images` in $SFT_ENGINE_CACHE, else in the user's cache folder.

    Another release of pillow may read other files: it has a file of its own.
    """
    root = os.environ.get("SFT_ENGINE_CACHE") or user_cache_dir("sft-engine", appauthor=False)
    name = f"{_FORMAT}-pillow-{version('pillow')}.sqlite"
    return Path(root).expanduser().absolute() / "images" / name


class _Cache:
    """Facts by key. Whatever is wrong with the file, the run goes on without it."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    def get(self, keys: Sequence[str]) -> dict[str, Facts]:
        return dict(self._rows(keys))

    def _rows(self, keys: Sequence[str]) -> Iterator[tuple[str, Facts]]:
        if self._connection is None:
            return
        try:
            for key in keys:
                query = "SELECT digest, width, height, problem FROM facts WHERE key = ?"
                row = self._connection.execute(query, (key,)).fetchone()
                if row is not None:
                    yield key, Facts(*row)
        except sqlite3.Error as error:
            self._give_up(error)

    def put(self, facts: Mapping[str, Facts]) -> None:
        if self._connection is None or not facts:
            return
        rows = [(k, f.digest, f.width, f.height, f.problem) for k, f in facts.items()]
        try:
            with self._connection:
                insert = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)"
                self._connection.executemany(insert, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        _log.debug("facts on images are not kept: %s", error)
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _open_cache() -> _Cache:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=10)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, digest TEXT, width INTEGER, "
            "height INTEGER, problem TEXT)"
        )
    except (OSError, sqlite3.Error) as error:
        _log.debug("facts on images are not kept in %s: %s", path, error)
        return _Cache(None)
    return _Cache(connection)
