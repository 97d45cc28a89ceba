"""Images and recordings on the command line: folders become their files, paths start at their tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_engine.cli.rows import Row


def file_rows(rows: Iterable[Row], role: str, column: str, file: str | None) -> Iterator[Row]:
    """Yield a row for each image or recording.

    Args:
        rows: Paths of files and of folders, or rows with a file.
        role: `image` or `audio`.
        column: Name of the file in a row, as the recipe has it; the role does as well.
        file: The file that the rows are from: their paths start in its folder.
    """
    from sft_engine.builtin.class_folders import FILES

    kind = FILES[role]
    start = Path(file).parent if file and file != "-" else Path()
    if file and (Path(file).is_dir() or Path(file).suffix.lower() in kind.suffixes):
        rows, start = (file,), Path()
    for row in rows:
        if not isinstance(row, str):
            yield _from_folder(row, column if column in row else role, start)
            continue
        path = start / Path(row).expanduser()
        yield from map(str, kind.files(path)) if path.is_dir() else (str(path),)


def _from_folder(row: dict[str, Any], column: str, folder: Path) -> dict[str, Any]:
    """Return the row of a table with its path starting from the table's folder."""
    value = row.get(column)
    if isinstance(value, str):
        return {**row, column: str(folder / value)}
    if isinstance(value, Mapping) and not value.get("bytes") and value.get("path"):
        return {**row, column: str(folder / value["path"])}
    return row


def rows_shown(rows: Iterable[Row], role: str, column: str) -> Iterator[Row]:
    """Yield rows as they are printed: a file by its path, else by its size in bytes."""
    for row in rows:
        yield row if isinstance(row, str) else _shown(row, column if column in row else role)


def _shown(row: dict[str, Any], column: str) -> dict[str, Any]:
    value = row.get(column)
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("bytes")
    if isinstance(value, bytes):
        value = f"{len(value)} bytes"
    return {**row, column: value}
