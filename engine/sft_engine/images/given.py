"""Images given to `predict`: broken ones stop it, or get a record that says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_engine import file_columns
from sft_engine.columns import IMAGE
from sft_engine.images.decoding import decode
from sft_engine.images.examples import in_threads

if TYPE_CHECKING:
    from sft_engine.file_columns import Records


def predicting(records: Records, *, skip: bool) -> Records:
    """Return what predicts rows with images: `records`, once each image was decoded.

    Args:
        records: Predicts rows whose images are whole.
        skip: Give broken images a record with `error` instead of stopping; null for the others.
    """
    return file_columns.predicting(records, IMAGE, decode, skip=skip, each=in_threads)
