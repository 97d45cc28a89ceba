"""Images on the command line: folders become the files in them, tables know where their paths start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft_engine.cli.rows import Row


def image_rows(rows: Iterable[Row], column: str, file: str | None) -> Iterator[Row]:
    """Yield a row for each image.

    Args:
        rows: Paths of images and of folders, or rows with an image.
        column: Name of the image in a row.
        file: The file that the rows are from: their paths start in its folder.
    """
    from sft_engine.builtin.image_data import SUFFIXES, image_files
    from sft_engine.images.given import from_folder

    start = Path(file).parent if file and file != "-" else Path()
    if file and (Path(file).is_dir() or Path(file).suffix.lower() in SUFFIXES):
        rows, start = (file,), Path()
    for row in rows:
        if not isinstance(row, str):
            yield from_folder(row, column if column in row else "image", start)
            continue
        path = start / Path(row).expanduser()
        yield from map(str, image_files(path)) if path.is_dir() else (str(path),)


def rows_shown(rows: Iterable[Row], column: str) -> Iterator[Row]:
    """Yield rows as they are printed: an image by its path."""
    from sft_engine.images.given import shown

    for row in rows:
        yield row if isinstance(row, str) else shown(row, column if column in row else "image")
