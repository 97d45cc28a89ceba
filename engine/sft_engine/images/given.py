"""Images given to `predict`: broken ones stop it, or get a record that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.columns import IMAGE
from sft_engine.images.decoding import ImageError, decode, path_of
from sft_engine.images.examples import in_threads

if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, Any]
Records = Callable[[list[Row]], list[Row]]


def predicting(records: Records, *, skip: bool) -> Records:
    """Return what predicts rows with images: `records`, once each image was decoded.

    Args:
        records: Predicts rows whose images are whole.
        skip: Give broken images a record with `error` instead of stopping; null for the others.
    """
    done = 0

    def predict(rows: list[Row]) -> list[Row]:
        nonlocal done
        images = in_threads(_opened, [(row, done + i) for i, row in enumerate(rows)])
        done += len(rows)
        problems = [image for image in images if isinstance(image, ImageError)]
        if problems and not skip:
            raise problems[0]
        whole = [
            {**row, IMAGE: image}
            for row, image in zip(rows, images, strict=True)
            if not isinstance(image, ImageError)
        ]
        predicted = iter(records(whole) if whole else ())
        return [_record(image, predicted, skip=skip) for image in images]

    return predict


def _opened(numbered: tuple[Row, int]) -> Image.Image | ImageError:
    row, number = numbered
    try:
        return decode(row[IMAGE], path_of(row[IMAGE]) or f"row {number}")
    except ImageError as error:
        return error


def _record(image: Any, predicted: Iterator[Row], *, skip: bool) -> Row:
    if isinstance(image, ImageError):
        return {"prediction": None, "error": image.reason}
    return {**next(predicted), "error": None} if skip else next(predicted)


def from_folder(row: Row, column: str, folder: Path) -> Row:
    """Return the row of a table with its image path starting from the table's folder."""
    value = row.get(column)
    if isinstance(value, str):
        return {**row, column: str(folder / value)}
    if isinstance(value, Mapping) and not value.get("bytes") and value.get("path"):
        return {**row, column: str(folder / value["path"])}
    return row


def shown(row: Row, column: str) -> Row:
    """Return a row as it is printed: an image by its path, else by its size in bytes."""
    value = row.get(column)
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("bytes")
    if isinstance(value, bytes):
        value = f"{len(value)} bytes"
    return {**row, column: value}
