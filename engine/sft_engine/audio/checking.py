"""All recordings of a split, looked at before training: which are broken, how long and loud they are.

Every recording is decoded once, in threads. Nothing is kept on disk: that is a small part of a run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_engine.audio.decoding import AudioError, decode
from sft_engine.columns import (
    AUDIO,
    AUDIO_DIGEST,
    AUDIO_FRAMES,
    AUDIO_PEAK,
    AUDIO_RATE,
    column_of,
    row_numbers,
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

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

SILENT = 2.0**-15
"""One step of 16 bits: what is never louder is silence."""
SHORT = 0.1
"""Seconds below which a recording holds next to nothing."""

_SHOWN = 5
_MOST_THREADS = 8


@dataclass(frozen=True)
class Facts:
    """What is known of a recording.

    Args:
        digest: Hash of the file's bytes: 32 hex digits.
        frames: Samples of a channel.
        rate: Samples a second.
        peak: Largest sample, without its sign.
        problem: Why it cannot be used; empty if it can.
    """

    digest: str = ""
    frames: int = 0
    rate: int = 0
    peak: float = 0.0
    problem: str = ""


def located(rows: Dataset, split: str, folder: Path) -> Dataset:
    """Return the split with an audio column that `decode` reads as it is: absolute paths, no objects.

    Args:
        rows: With the column `audio`.
        split: Its name, for messages.
        folder: What relative paths start from.

    Raises:
        DataError: the column holds something else than paths or bytes.
    """
    from datasets import Audio

    if isinstance(rows.features[AUDIO], Audio):
        rows = rows.cast_column(AUDIO, Audio(decode=False))
    if holds_paths(rows, AUDIO):
        return with_absolute_paths(rows, AUDIO, folder)
    kind = rows.data.schema.field(AUDIO).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"[data] split '{split}': the column '{AUDIO}' holds {kind}; allowed are paths, or the bytes "
            "of audio files: check data.columns."
        )
    return rows


def checked(rows: Dataset, split: str, *, skip: bool) -> Dataset:
    """Look at every recording; return the split with hash, length, rate and peak of each as columns.

    Args:
        rows: As `located` returns them.
        split: Its name, for messages.
        skip: Leave out broken recordings with a warning for each; else they stop the run.

    Raises:
        DataError: recordings are broken, named with path and reason; or none is left.
    """
    if AUDIO_DIGEST in rows.column_names:
        return rows  # looked at before
    facts, paths = _facts_of(rows)
    columns: dict[str, tuple[Any, str]] = {
        AUDIO_DIGEST: ([each.digest for each in facts], "string"),
        AUDIO_FRAMES: (np.array([each.frames for each in facts], dtype=np.int64), "int64"),
        AUDIO_RATE: (np.array([each.rate for each in facts], dtype=np.int32), "int32"),
        AUDIO_PEAK: (np.array([each.peak for each in facts], dtype=np.float32), "float32"),
    }
    looked = [(path, each.problem) for path, each in zip(paths, facts, strict=True)]
    return whole_rows(with_facts(rows, columns), split, AudioError, looked, skip=skip)


def _facts_of(rows: Dataset) -> tuple[list[Facts], list[str]]:
    """Return facts and path of every recording, in the order of the rows."""
    facts: list[Facts] = []
    paths: list[str] = []
    with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for values in portions(rows, AUDIO):
            paths += [path_of(value) for value in values]
            facts += pool.map(look, values)
    return facts, paths


def look(value: Any) -> Facts:
    """Decode a recording, and return what there is to know of it; never raises for a broken one."""
    try:
        data = read(value, AudioError)
        sound = decode(data)
    except AudioError as error:
        return Facts(problem=error.reason)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Facts(digest, len(sound.samples), sound.rate, float(np.abs(sound.samples).max()))


# --- remarks -------------------------------------------------------------------------------------


def remarks(name: str, rows: Dataset) -> Iterator[str]:
    """Yield a sentence on recordings that are silent, and one on those that are very short."""
    if AUDIO_PEAK not in rows.column_names:
        return
    silent = np.flatnonzero(np.asarray(column_of(rows, AUDIO_PEAK)) <= SILENT)
    if len(silent):
        yield f"{_part(silent, rows)} recordings of the split '{name}' are silent{_listed(rows, silent)}."
    frames, rates = (np.asarray(column_of(rows, each)) for each in (AUDIO_FRAMES, AUDIO_RATE))
    short = np.flatnonzero(frames < SHORT * rates)
    if len(short):
        yield (
            f"{_part(short, rows)} recordings of the split '{name}' are shorter than {SHORT} s"
            f"{_listed(rows, short)}: they are continued by silence."
        )


def _part(found: NDArray[np.int64], rows: Dataset) -> str:
    return f"{len(found)} of {len(rows)} ({len(found) / len(rows):.1%})"


def _listed(rows: Dataset, ids: NDArray[np.int64]) -> str:
    more = ", ..." if len(ids) > _SHOWN else ""
    return f" (rows {', '.join(map(str, row_numbers(rows)[ids[:_SHOWN]]))}{more}, counted from 0)"
