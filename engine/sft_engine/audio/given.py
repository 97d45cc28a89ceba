"""Recordings given to `predict`: broken ones stop it, or get a record that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sft_engine.audio.decoding import AudioError, Sound, decode, path_of
from sft_engine.columns import AUDIO

Row = dict[str, Any]
Records = Callable[[list[Row]], list[Row]]


def predicting(records: Records, *, skip: bool) -> Records:
    """Return what predicts rows with recordings: `records`, once each was decoded.

    Args:
        records: Predicts rows whose recordings are whole.
        skip: Give broken ones a record with `error` instead of stopping; null for the others.
    """
    done = 0

    def predict(rows: list[Row]) -> list[Row]:
        nonlocal done
        sounds = [_opened(row[AUDIO], done + index) for index, row in enumerate(rows)]
        done += len(rows)
        problems = [sound for sound in sounds if isinstance(sound, AudioError)]
        if problems and not skip:
            raise problems[0]
        whole = [
            {**row, AUDIO: sound}
            for row, sound in zip(rows, sounds, strict=True)
            if not isinstance(sound, AudioError)
        ]
        predicted = iter(records(whole) if whole else ())
        return [
            {"prediction": None, "error": sound.reason}
            if isinstance(sound, AudioError)
            else next(predicted) | ({"error": None} if skip else {})
            for sound in sounds
        ]

    return predict


def _opened(value: Any, number: int) -> Sound | AudioError:
    try:
        return decode(value, path_of(value) or f"row {number}")
    except AudioError as error:
        return error
