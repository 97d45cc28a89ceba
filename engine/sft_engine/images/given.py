"""Images given to `predict`: broken ones stop it, or get a record that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
