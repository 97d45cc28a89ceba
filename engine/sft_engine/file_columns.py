"""Columns whose values are files, images or recordings: reading, paths, and what to do with broken ones.

A kind of file brings its own error, which also says what messages call it, and its own `decode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_engine.columns import column_of, is_text, row_numbers, with_column
from sft_engine.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    Row = dict[str, Any]
    Records = Callable[[list[Row]], list[Row]]

NAMED = 20
"""Broken files that one sentence names."""

_PORTION = 512
_log = logging.getLogger("sft_engine")


class FileError(DataError):
    """A file of a column that cannot be used; each kind of file has its own.

    Args:
        reason: Why, without the place.
        where: Path or row.

    Attributes:
        noun: What one of these files is called, with its article.
        plural: What many are called.
    """

    noun: ClassVar[str] = "a file"
    plural: ClassVar[str] = "files"

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where

    @classmethod
    def why_not_read(cls, path: Path, error: Exception) -> str:  # noqa: ARG003 - others name it
        """Return the reason that the system gives for not reading a file."""
        if isinstance(error, FileNotFoundError):
            return "there is no such file"
        said = getattr(error, "strerror", None) or str(error)
        return f"it cannot be read ({said.lower()})"


# --- a value -------------------------------------------------------------------------------------


def path_of(value: Any) -> str:
    """Return the path of a file as text; empty if it has none."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return str(value) if isinstance(value, str | Path) else ""


def read(value: Any, kind: type[FileError], where: str = "") -> bytes:
    """Return the bytes of the file that a value of the column stands for.

    Args:
        value: A path; bytes of a file; or a dict with `bytes` and `path`.
        kind: The error of files of this kind.
        where: What messages call it; by default its path.

    Raises:
        FileError: of this kind: there is no such file, it may not be read, or the value is nothing of
            the kind.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str | Path):
        found = "nothing" if value is None else type(value).__name__
        raise kind(f"found {found} where a path or the bytes of {kind.noun} belong", where)
    path = Path(value)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise kind(kind.why_not_read(path, error), where or str(path)) from error


# --- a column ------------------------------------------------------------------------------------


def holds_paths(rows: Dataset, name: str) -> bool:
    """Whether a column is of paths, or of structs of `bytes` and `path`."""
    kind = rows.data.schema.field(name).type
    return is_text(kind) or _is_struct_of_files(kind)


def _is_struct_of_files(kind: pa.DataType) -> bool:
    return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def with_absolute_paths(rows: Dataset, name: str, folder: Path) -> Dataset:
    """Return the split with the paths of a column made absolute.

    Args:
        rows: A split whose column `holds_paths`.
        name: Of the column.
        folder: What relative paths start from.
    """
    from datasets import Value

    if _is_struct_of_files(rows.data.schema.field(name).type):
        return _with_located_structs(rows, name, folder)
    paths = [None if path is None else str(folder / path) for path in rows[name][:]]
    return with_column(rows, name, paths, Value("string"))


def _with_located_structs(rows: Dataset, name: str, folder: Path) -> Dataset:
    """Make the paths of a struct absolute where there are no bytes beside them."""
    files = column_of(rows, name)
    outside = pc.and_(pc.struct_field(files, "bytes").is_null(), files.is_valid())
    if not pc.any(outside).as_py():
        return rows
    values = [
        {"bytes": None, "path": str(folder / each["path"])}
        if each and each["bytes"] is None and each["path"]
        else each
        for each in files.to_pylist()
    ]
    return with_column(rows, name, values, rows.features[name])


def portions(rows: Dataset, name: str) -> Iterator[list[Any]]:
    """Yield the values of a column, some rows at a time: all files in memory would be too many."""
    column = rows.select_columns([name])
    for start in range(0, len(column), _PORTION):
        ids = range(start, min(start + _PORTION, len(column)))
        yield [row[name] for row in column.__getitems__(list(ids))]


def with_facts(
    rows: Dataset, facts: Mapping[str, tuple[Sequence[Any] | NDArray[Any], str]]
) -> Dataset:
    """Return the split with a column for each fact on its files: values, one a row, and dtype."""
    from datasets import Value

    for name, (values, dtype) in facts.items():
        rows = with_column(rows, name, values, Value(dtype))
    return rows


def whole_rows(
    rows: Dataset,
    split: str,
    kind: type[FileError],
    looked: Sequence[tuple[str, str]],
    *,
    skip: bool,
) -> Dataset:
    """Return the split without its broken files.

    Args:
        rows: The split.
        split: Its name, for messages.
        kind: The error of files of this kind.
        looked: Of each row the file's path, empty if it has none; and why it cannot be used, empty if it
            can.
        skip: Leave out broken files with a warning for each; else they stop the run.

    Raises:
        DataError: files are broken, named with path and reason; or none is left.
    """
    broken = [index for index, (_, problem) in enumerate(looked) if problem]
    numbers = row_numbers(rows)
    named = [f"{_name(looked[i][0], int(numbers[i]))}: {looked[i][1]}" for i in broken]
    if broken and not skip:
        raise DataError(_sentence(split, kind.plural, named, len(rows)))
    for each in named:
        _log.warning("[data] split '%s': %s; left out", split, each)
    if len(broken) == len(rows):
        raise DataError(
            f"[data] split '{split}': none of {len(rows)} {kind.plural} can be used; {named[0]}."
        )
    return rows.select(np.delete(np.arange(len(rows)), broken)) if broken else rows


def _name(path: str, row: int) -> str:
    return f"'{path}' (row {row})" if path else f"row {row}"


def _sentence(split: str, plural: str, named: Sequence[str], total: int) -> str:
    more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"[data] split '{split}': {len(named)} of {total} {plural} cannot be used: "
        f'{"; ".join(named[:NAMED])}{more}. Mend or remove them, or set on_error = "skip" in [data] to '
        "leave them out."
    )


# --- given to `predict` --------------------------------------------------------------------------


def predicting(
    records: Records,
    name: str,
    decode: Callable[[Any, str], Any],
    *,
    skip: bool,
    each: Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]] = map,
) -> Records:
    """Return what predicts rows with files: `records`, once each was decoded.

    Args:
        records: Predicts rows whose files are whole.
        name: Of the column of files.
        decode: Takes a value and what messages call it; raises a `FileError`.
        skip: Give broken ones a record with `error` instead of stopping; null for the others.
        each: Applies a function to a list of items.
    """
    done = 0

    def opened(numbered: tuple[int, Row]) -> Any:
        number, row = numbered
        try:
            return decode(row[name], path_of(row[name]) or f"row {number}")
        except FileError as error:
            return error

    def predict(rows: list[Row]) -> list[Row]:
        nonlocal done
        files = list(each(opened, list(enumerate(rows, done))))
        done += len(rows)
        problems = [file for file in files if isinstance(file, FileError)]
        if problems and not skip:
            raise problems[0]
        whole = [
            {**row, name: file}
            for row, file in zip(rows, files, strict=True)
            if not isinstance(file, FileError)
        ]
        predicted = iter(records(whole) if whole else ())
        return [_record(file, predicted, skip=skip) for file in files]

    return predict


def _record(file: Any, predicted: Iterator[Row], *, skip: bool) -> Row:
    if isinstance(file, FileError):
        return {"prediction": None, "error": file.reason}
    return {**next(predicted), "error": None} if skip else next(predicted)
