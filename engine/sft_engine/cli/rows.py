"""What `predict` reads and writes: texts or rows in, records with them out, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sft_engine.errors import DataError
from sft_engine.sentences import closed, suggest

Row = str | dict[str, Any]
"""A text, or the task's inputs by role."""

TEXT_FILES = (".txt", "")
FORMATS = ("jsonl", "csv")


# --- In ------------------------------------------------------------------------------------------


def read_rows(path: str) -> Iterator[Row]:
    """Read a file: `.txt` has a text a line, csv, tsv, jsonl and parquet have a row a line.

    Raises:
        DataError: no such file, another kind of file, or a broken one.
    """
    file = Path(path)
    if file.is_dir():
        raise DataError(f"--file: {path!r} is a folder; name a file in it.")
    if not file.exists():
        raise DataError(closed(f"--file: there is no file {path!r}{_near(file)}"))
    if file.is_file() and not file.stat().st_size:
        raise DataError(f"--file: {path!r} is empty.")
    if file.suffix not in TEXT_FILES:
        from sft_engine.builtin.data import read_file

        yield from read_file(file)
        return
    with file.open("rb") as lines:
        yield from read_lines(lines, path)


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    """Read a text a line, or a JSON object a line if the first line is one; skip blank lines.

    Args:
        lines: UTF-8 text; read only as far as rows are asked for.
        name: How messages call it.

    Raises:
        DataError: a line is not UTF-8, or the first line is an object and this one is not.
    """
    objects: bool | None = None
    for number, raw in enumerate(lines, 1):
        line = _decoded(raw, name, number).strip()
        if not line:
            continue
        row = _object(line) if objects is not False else None
        if objects is None:
            objects = row is not None
        if objects and row is None:
            raise DataError(
                f"{name}, line {number}: found {line[:60]!r}, allowed: a JSON object, as on the "
                "lines before."
            )
        yield line if row is None else row


def _decoded(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, line {number}: found the byte 0x{raw[error.start]:02x}, allowed: UTF-8 text; "
            "convert it, for example with `iconv -t utf-8`."
        ) from error


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _near(file: Path) -> str:
    if not file.parent.is_dir():
        return f", and no folder '{file.parent}'"
    near = suggest(file.name, (each.name for each in file.parent.iterdir()))
    return f"; {near}" if near else ""


# --- Out -----------------------------------------------------------------------------------------


def joined(
    rows: Iterable[Row], records: Iterable[Mapping[str, Any]], name: str = "text"
) -> Iterator[dict[str, Any]]:
    """Return each record behind the row that it was predicted from; a row of one text is `name`."""
    for row, record in zip(rows, records, strict=True):
        given = {name: row} if isinstance(row, str) else row
        yield {**given, **record}


def write_records(records: Iterable[Mapping[str, Any]], file: IO[str], form: str) -> int:
    """Write records as they come, a line each, and return how many there were."""
    count = 0
    lines = _CsvLines(file) if form == "csv" else _JsonLines(file)
    for count, record in enumerate(records, 1):  # noqa: B007  counted on purpose
        lines.write(record)
        file.flush()
    return count


class _JsonLines:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


class _CsvLines:
    """A header after the first record; what later records have beyond it is an error."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._writer: csv.DictWriter[str] | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        fields = flat(record)
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(fields), lineterminator="\n")
            self._writer.writeheader()
        unknown = [name for name in fields if name not in self._writer.fieldnames]
        if unknown:
            raise DataError(
                f"a row has the column {unknown[0]!r}, which the first row lacks; use --format jsonl."
            )
        self._writer.writerow(fields)


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as columns: probabilities as `p(LABEL)`, other tables as `NAME(KEY)`.

    Lists, such as the predictions of a multi-label task or the words of an explanation, are JSON.
    """
    columns: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            prefix = "p" if name == "probabilities" else name
            columns |= {f"{prefix}({key})": _cell(item) for key, item in value.items()}
        else:
            columns[name] = _cell(value)
    return columns


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
