"""All recordings of a split, looked at before training: which are broken, how long and loud they are.

Every recording is decoded once, in threads. Nothing is kept on disk: that is a small part of a run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_engine.audio.decoding import AudioError, decode, path_of, read
from sft_engine.columns import (
    AUDIO,
    AUDIO_DIGEST,
    AUDIO_FRAMES,
    AUDIO_PEAK,
    AUDIO_RATE,
    column_of,
    is_text,
    row_numbers,
    with_column,
)
from sft_engine.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

NAMED = 20
"""Broken recordings that one sentence names."""

SILENT = 2.0**-15
"""One step of 16 bits: what is never louder is silence."""
SHORT = 0.1
"""Seconds below which a recording holds next to nothing."""

_PORTION = 512
_SHOWN = 5
_MOST_THREADS = 8
_log = logging.getLogger("sft_engine")


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
    from datasets import Audio, Value

    if isinstance(rows.features[AUDIO], Audio):
        rows = rows.cast_column(AUDIO, Audio(decode=False))
    kind = rows.data.schema.field(AUDIO).type
    if is_text(kind):
        paths = [None if path is None else str(folder / path) for path in rows[AUDIO][:]]
        return with_column(rows, AUDIO, paths, Value("string"))
    if {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}:
        return _with_located_files(rows, folder)
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"[data] split '{split}': the column '{AUDIO}' holds {kind}; allowed are paths, or the bytes "
            "of audio files: check data.columns."
        )
    return rows


def _with_located_files(rows: Dataset, folder: Path) -> Dataset:
    """Make the paths of a struct absolute where there are no bytes beside them."""
    sounds = column_of(rows, AUDIO)
    outside = pc.and_(pc.struct_field(sounds, "bytes").is_null(), sounds.is_valid())
    if not pc.any(outside).as_py():
        return rows
    values = [
        {"bytes": None, "path": str(folder / each["path"])}
        if each and each["bytes"] is None and each["path"]
        else each
        for each in sounds.to_pylist()
    ]
    return with_column(rows, AUDIO, values, rows.features[AUDIO])


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
    broken = [index for index, each in enumerate(facts) if each.problem]
    numbers = row_numbers(rows)
    named = [f"{_name(paths[i], int(numbers[i]))}: {facts[i].problem}" for i in broken]
    if broken and not skip:
        raise DataError(_sentence(split, named, len(rows)))
    for each in named:
        _log.warning("[data] split '%s': %s; left out", split, each)
    if len(broken) == len(rows):
        raise DataError(
            f"[data] split '{split}': none of {len(rows)} recordings can be used; {named[0]}."
        )
    rows = _with_facts(rows, facts)
    return rows.select(np.delete(np.arange(len(rows)), broken)) if broken else rows


def _with_facts(rows: Dataset, facts: Sequence[Facts]) -> Dataset:
    from datasets import Value

    columns: dict[str, tuple[Any, str]] = {
        AUDIO_DIGEST: ([each.digest for each in facts], "string"),
        AUDIO_FRAMES: (np.array([each.frames for each in facts], dtype=np.int64), "int64"),
        AUDIO_RATE: (np.array([each.rate for each in facts], dtype=np.int32), "int32"),
        AUDIO_PEAK: (np.array([each.peak for each in facts], dtype=np.float32), "float32"),
    }
    for name, (values, dtype) in columns.items():
        rows = with_column(rows, name, values, Value(dtype))
    return rows


def _name(path: str, row: int) -> str:
    return f"'{path}' (row {row})" if path else f"row {row}"


def _sentence(split: str, named: Sequence[str], total: int) -> str:
    more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"[data] split '{split}': {len(named)} of {total} recordings cannot be used: "
        f'{"; ".join(named[:NAMED])}{more}. Mend or remove them, or set on_error = "skip" in [data] to '
        "leave them out."
    )


def _facts_of(rows: Dataset) -> tuple[list[Facts], list[str]]:
    """Return facts and path of every recording, in the order of the rows."""
    facts: list[Facts] = []
    paths: list[str] = []
    sounds = rows.select_columns([AUDIO])
    with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for start in range(0, len(sounds), _PORTION):
            ids = range(start, min(start + _PORTION, len(sounds)))
            values = [row[AUDIO] for row in sounds.__getitems__(list(ids))]
            paths += [path_of(value) for value in values]
            facts += pool.map(look, values)
    return facts, paths


def look(value: Any) -> Facts:
    """Decode a recording, and return what there is to know of it; never raises for a broken one."""
    try:
        data = read(value)
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
