"""Readers of csv, JSON lines and parquet files that say where a file is broken.

A csv file holds text and nothing else: "007", "NA" and "None" stay what they are. The task reads
numbers out of text where it needs them.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.errors import DataError, RecipeError
from sft_engine.sentences import show_value, suggest

if TYPE_CHECKING:
    from datasets import Dataset

NO_QUOTES = ""
_LONGEST_FIELD = 2**31 - 1


def existing(path: str) -> Path:
    """Return the path of a file, relative to the current folder.

    Raises:
        DataError: there is no such file, it is a folder, or it is empty.
    """
    file = Path(path).expanduser()
    if not file.exists():
        relative = "" if file.is_absolute() else f" (looked in {Path.cwd()})"
        hint = _near(file) or "correct data.path."
        raise DataError(f"[data] path: there is no file '{path}'{relative}; {hint}")
    if file.is_dir():
        raise DataError(
            f"[data] path: '{path}' is a folder; name a file, or give one file a split: "
            'path = {train = "train.csv", test = "test.csv"}.'
        )
    if file.stat().st_size == 0:
        raise DataError(f"[data] path: the file '{path}' is empty; write it again.")
    return file


def _near(file: Path) -> str:
    if not file.parent.is_dir():
        return f"there is no folder '{file.parent}' either."
    return suggest(file.name, (each.name for each in file.parent.iterdir()))


def read_bytes(file: Path) -> bytes:
    """Return the content of a file. Raises DataError if it may not be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"[data] path: cannot read '{file}': {error.strerror or error}.") from error


def decoded(file: Path, encoding: str) -> str:
    """Return the text of a file.

    Raises:
        DataError: it is not in that encoding; line and byte are named.
        RecipeError: there is no such encoding.
    """
    raw = read_bytes(file)
    name = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        return raw.decode(name)
    except LookupError as error:
        raise RecipeError(f"data.encoding: Python knows no encoding '{encoding}'.") from error
    except UnicodeError as error:
        place = getattr(error, "start", 0)
        line = raw.count(b"\n", 0, place) + 1
        byte = f"0x{raw[place]:02x}" if place < len(raw) else "the end"
        raise DataError(
            f"'{file}', line {line}: byte {place} ({byte}) is not {encoding}; save the file as "
            f'{encoding}, or set encoding in [data], such as "latin-1".'
        ) from error


# --- csv -----------------------------------------------------------------------------------------


def read_csv(
    file: Path,
    delimiter: str = ",",
    encoding: str = "utf-8",
    quote: str = '"',
    column_names: Sequence[str] = (),
) -> Dataset:
    """Read a csv file; every column is text.

    Args:
        file: A file that exists.
        delimiter: Between fields.
        encoding: Of the file.
        quote: Around fields that hold a delimiter; empty where quotes are plain characters.
        column_names: Where the file has no header.

    Raises:
        DataError: broken bytes, a row with more or fewer fields, an open quote, no rows.
    """
    from datasets import Dataset, Features, Value

    rows = _csv_rows(file, decoded(file, encoding), delimiter, quote)
    header = list(column_names) or next((row for _, row in rows), [])
    _check_header(file, header)
    columns: list[list[str]] = [[] for _ in header]
    for line, row in rows:
        if len(row) != len(header):
            raise _ragged(file, line, row, header, delimiter)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    if not columns[0]:
        raise DataError(f"'{file}' holds a header ({_listed(header)}) and no rows; add data.")
    features = Features({name: Value("string") for name in header})
    return Dataset.from_dict(dict(zip(header, columns, strict=True)), features=features)


def _csv_rows(file: Path, text: str, delimiter: str, quote: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its last line; blank lines are left out."""
    limit = csv.field_size_limit(_LONGEST_FIELD)  # the default refuses texts of more than 128 kB
    lines = io.StringIO(text, newline="")
    if quote == NO_QUOTES:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)
    began = 1
    try:
        for row in reader:
            if row:
                yield began, row
            began = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"'{file}', line {began}: {error}; close or double the quotes there, or set "
            'quote = "" in [data] if quotes are plain characters.'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _check_header(file: Path, header: Sequence[str]) -> None:
    if not header:
        raise DataError(f"'{file}' holds blank lines and nothing else; write it again.")
    for name in header:
        if header.count(name) > 1 or not name:
            problem = f"two columns '{name}'" if name else "a column without a name"
            raise DataError(
                f"'{file}', line 1: {problem} ({_listed(header)}); rename it, or list "
                "column_names in [data] if the file has no header."
            )


def _ragged(
    file: Path, line: int, row: Sequence[str], header: Sequence[str], delimiter: str
) -> DataError:
    return DataError(
        f"'{file}', line {line}: {len(row)} fields where the header has {len(header)} "
        f"({_listed(header)}); put quotes around fields that hold {show_value(delimiter)}, or set "
        "delimiter in [data]."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


# --- JSON lines ----------------------------------------------------------------------------------


def read_jsonl(file: Path, encoding: str = "utf-8") -> Dataset:
    """Read a file with one JSON object a line; a key that a line lacks is null there.

    Raises:
        DataError: broken bytes or JSON, a line that is no object, keys of mixed types, no rows.
    """
    from datasets import Dataset

    text = decoded(file, encoding)
    if text.lstrip()[:1] == "[":
        raise DataError(
            f"'{file}' is one JSON array; jsonl needs one object a line: rewrite it, for example "
            "with `jq -c '.[]'`."
        )
    rows = [_json_row(file, n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise DataError(f"'{file}' holds blank lines and nothing else; write it again.")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name, values in columns.items():
        _check_type(file, name, values)
    return Dataset.from_dict(columns)


def _json_row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"'{file}', line {number}: no JSON at character {error.colno} ({error.msg}); "
            "correct or delete the line."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"'{file}', line {number}: {show_value(row)} is no object; a line looks like "
            '{"text": "...", "label": "..."}.'
        )
    return row


def _check_type(file: Path, name: str, values: list[Any]) -> None:
    import pyarrow as pa

    try:
        pa.array(values)
    except pa.ArrowException:
        kinds = {type(v).__name__ for v in values if v is not None}
        raise DataError(
            f"'{file}': the key '{name}' holds values of different types "
            f"({', '.join(sorted(kinds))}); give it one type."
        ) from None


# --- parquet -------------------------------------------------------------------------------------


def read_parquet(file: Path) -> Dataset:
    """Read a parquet file, with the types that Hugging Face `datasets` wrote into it, if it did.

    Raises:
        DataError: it is no parquet file, it is cut off, or it has no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        table = pq.read_table(os.fspath(file))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise DataError(
            f"'{file}' is no parquet file, or it is damaged ({reason}); write it again, or use the data "
            "component of its format."
        ) from error
    if table.num_rows == 0:
        raise DataError(f"'{file}' has the columns {_listed(table.column_names)} and no rows.")
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories, which `datasets` does not know
            column = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.name, column)
    return Dataset(table)
