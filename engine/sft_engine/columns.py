"""Columns of a split as Arrow arrays, and back; the hash of a split's content.

Works on the columns it is asked for alone: a split may hold a million texts, and is not copied.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from datasets import Dataset
    from numpy.typing import NDArray

ROW = "row"
"""Column with the number of a row in the split of the source that it comes from."""

IMAGE = "image"
"""Role of a column of images."""
IMAGE_DIGEST, IMAGE_WIDTH, IMAGE_HEIGHT = "image_digest", "image_width", "image_height"
"""Columns that the check of images adds: hash of the content, pixels."""

AUDIO = "audio"
"""Role of a column of recordings."""
AUDIO_DIGEST, AUDIO_FRAMES, AUDIO_RATE = "audio_digest", "audio_frames", "audio_rate"
AUDIO_PEAK = "audio_peak"
"""Columns that the check of recordings adds: hash of the content, samples of a channel and a second, peak."""

DIGESTS = {IMAGE: IMAGE_DIGEST, AUDIO: AUDIO_DIGEST}
"""Roles whose values are files, and the columns with the hashes of their contents."""

_BATCH = 10_000
_FOLDER = "sft_folder"


def column_of(rows: Dataset, name: str) -> Any:
    """Return a column as one Arrow array, in the order of the rows."""
    parts = list(_parts(rows, name, max(len(rows), 1)))
    return pa.concat_arrays(parts) if parts else pa.array([], rows.data.schema.field(name).type)


def _parts(rows: Dataset, name: str, size: int) -> Iterator[Any]:
    """Yield a column in pieces of at most `size` rows.

    Not by way of `rows[...]`: on a selection, `datasets` cuts out every row by itself (80 s a million).
    """
    column = rows.data.column(name)
    indices = rows._indices  # noqa: SLF001
    places = None if indices is None else indices.column(0)
    for start in range(0, len(rows), size):
        if places is None:
            piece = column.slice(start, size)
        else:
            piece = column.take(places.slice(start, size))
        yield pa.concat_arrays(piece.chunks)


def with_column(
    rows: Dataset, name: str, values: Sequence[Any] | NDArray[Any], feature: Any
) -> Dataset:
    """Return the split with a column added or replaced; the other columns are shared, not copied.

    Args:
        rows: A split; no row of its table is in it twice unless the values of both are equal.
        name: Of the column.
        values: One a row.
        feature: The column's type, of `datasets`.
    """
    from datasets import Dataset

    indices = rows._indices  # noqa: SLF001 - adding to a selection would copy it: 100x slower
    if indices is None:
        plain, stored = rows, values
    else:
        places = np.asarray(indices.column(0), dtype=np.int64)
        plain = Dataset(rows.data, info=rows.info.copy(), split=rows.split, fingerprint=_new())
        stored = _scattered(values, places, len(plain))
    if name in plain.column_names:
        plain = plain.remove_columns(name, new_fingerprint=_new())
    plain = plain.add_column(name, stored, new_fingerprint=_new(), feature=feature)
    if indices is None:
        return plain
    return Dataset(
        plain.data, info=plain.info, split=rows.split, indices_table=indices, fingerprint=_new()
    )


def _new() -> str:
    """Return a fingerprint that `datasets` has never seen: it would hash the whole table for one."""
    return uuid.uuid4().hex


def _scattered(
    values: Sequence[Any] | NDArray[Any], places: NDArray[np.int64], size: int
) -> Sequence[Any] | NDArray[Any]:
    if isinstance(values, np.ndarray):
        table = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
        table[places] = values
        return table
    stored: list[Any] = [None] * size
    for place, value in zip(places.tolist(), values, strict=True):
        stored[place] = value
    return stored


def with_folder(rows: Dataset, folder: Path) -> Dataset:
    """Note on a split that a source has just read what its relative paths start from."""
    setattr(rows, _FOLDER, folder)  # no place in `datasets` for it; selections lose it
    return rows


def folder_of(rows: Dataset) -> Path | None:
    """Return what relative paths of a split start from, where its source knows."""
    folder: Path | None = getattr(rows, _FOLDER, None)
    return folder


def row_numbers(rows: Dataset) -> NDArray[np.int64]:
    """Return the number of each row in its source: the column `row`, else the position."""
    if ROW in rows.column_names:
        return np.asarray(column_of(rows, ROW), dtype=np.int64)
    return np.arange(len(rows), dtype=np.int64)


def is_text(kind: pa.DataType) -> bool:
    """Say whether an Arrow type is a string."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Say whether an Arrow type is a list of any kind."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def missing(rows: Dataset, name: str, *, empty: bool = False) -> NDArray[np.bool_]:
    """Say for each row whether the column holds nothing: null, NaN, or -1 of a `ClassLabel`.

    Args:
        rows: The split.
        name: Of the column.
        empty: Count an empty string as nothing, too.
    """
    array = column_of(rows, name)
    mask = np.array(array.is_null(nan_is_null=pa.types.is_floating(array.type)))
    if getattr(rows.features[name], "names", None) and pa.types.is_integer(array.type):
        mask |= np.array(pc.equal(array, -1).fill_null(True))  # noqa: FBT003 - no keyword
    if empty and is_text(array.type):
        mask |= np.array(pc.equal(array, "").fill_null(True))  # noqa: FBT003 - no keyword
    return mask


def fingerprint(rows: Dataset) -> str:
    """Hash names, types and content of all columns in the order of the rows: 32 hex digits.

    The same in every process and for every way in which the rows are stored: selected or copied, in
    one piece or in many, from a csv or a parquet file. Images and recordings count by the hash of
    their content, where it is known: not by the folder that they are in on this machine.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = {role for role, digest in DIGESTS.items() if digest in rows.column_names}
    names = set(rows.column_names) - files
    for name in sorted(names):
        digest.update(f"{name}\0".encode())
        for part in _parts(rows, name, _BATCH):
            _hash(digest, part)
    return digest.hexdigest()


def _hash(digest: Any, array: Any) -> None:
    """Feed an array to the digest: its type, where it is null, its values."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _hash(digest, array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        return _hash(digest, array.storage)
    digest.update(np.packbits(np.array(array.is_null())).tobytes())
    if is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        _hash_bytes(digest, array)
    elif is_list(kind):
        _hash(digest, pc.list_value_length(array).fill_null(-1).cast(pa.int64()))
        _hash(digest, array.flatten())
    elif pa.types.is_struct(kind):
        for field, values in zip(kind, array.flatten(), strict=True):
            digest.update(f"{field.name}\0".encode())
            _hash(digest, values)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        digest.update(str(kind).encode())
        digest.update(np.ascontiguousarray(array.fill_null(0)).tobytes())
    else:
        digest.update(repr(array.to_pylist()).encode())
    return None


def _hash_bytes(digest: Any, array: Any) -> None:
    lengths = pc.binary_length(array).fill_null(0).cast(pa.int64())
    digest.update(b"bytes")
    digest.update(np.ascontiguousarray(lengths).tobytes())
    values = array.cast(pa.large_binary()).drop_null()
    _, offsets, data = values.buffers()
    if len(values) and data is not None:
        bounds = np.frombuffer(offsets, dtype=np.int64)[values.offset :]
        digest.update(data[int(bounds[0]) : int(bounds[len(values)])])
