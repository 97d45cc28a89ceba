"""Recordings given to `predict`: broken ones stop it, or get a record that says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_engine import file_columns
from sft_engine.audio.decoding import decode
from sft_engine.columns import AUDIO

if TYPE_CHECKING:
    from sft_engine.file_columns import Records


def predicting(records: Records, *, skip: bool) -> Records:
    """Return what predicts rows with recordings: `records`, once each was decoded.

    Args:
        records: Predicts rows whose recordings are whole.
        skip: Give broken ones a record with `error` instead of stopping; null for the others.
    """
    return file_columns.predicting(records, AUDIO, decode, skip=skip)
