"""Examples of another kind than a model was trained on: from a file, or made of its own ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine import DataError
from sft_engine.preparation import prepare_given

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine import Run

MADE = {
    "text": "the letters of the split's own texts, shuffled within each text",
    "image": "uniform noise in the size of the split's own images",
    "features": "features each drawn from its values in the split, independently of the others",
}
"""What is made where no data is named, by the input of the task."""


def read_outside(run: Run, path: str, name: str) -> Dataset:
    """Read data with the recipe's input columns; targets are not looked at.

    Args:
        run: The run, its task prepared.
        path: A csv, tsv, jsonl or parquet file; with images or recordings also a folder of classes.
        name: Of the probe, for the message.

    Raises:
        DataError: there is no such file, or it lacks a column.
    """
    from sft_engine.builtin.class_folders import FILES
    from sft_engine.builtin.data import read_file

    file = Path(path)
    try:
        role = next((role for role in FILES if role in run.task.inputs), "")
        raw = FILES[role].read(file) if role and file.is_dir() else read_file(file)
        settings = run.plan.data
        columns = {role: c for role, c in settings.columns.items() if role in run.task.inputs}
        targets = {run.task.target, settings.columns.get(run.task.target, run.task.target)}
        raw = raw.remove_columns([each for each in raw.column_names if each in targets])
        given = replace(settings, columns=columns, label_names=run.task.head.names)
        # A copy, because a task learns from what it prepares.
        return prepare_given({name: raw}, given, copy.copy(run.task), need_target=False)[name]
    except DataError as error:
        raise DataError(f"`data` of the probe `{name}`: {error}") from error


def nonsense(row: dict[str, Any], draws: np.random.Generator, features: Any = None) -> None:
    """Turn the inputs of a row into nonsense of the same size, in place.

    Args:
        row: With texts, an image or features by role.
        draws: Source of randomness.
        features: Features of other examples (n, f), from which each is drawn.
    """
    for role in ("text", "text_pair"):
        if isinstance(row.get(role), str):
            row[role] = _shuffled(row[role], draws)
    if "image" in row:
        row["image"] = _noise(row["image"], draws)
    if "features" in row and features is not None:
        places = draws.integers(len(features), size=features.shape[1])
        row["features"] = features[places, np.arange(features.shape[1])].tolist()


def _shuffled(text: str, draws: np.random.Generator) -> str:
    """Return the text with its characters in another order; blanks stay where they are."""
    letters = [each for each in text if not each.isspace()]
    others = iter([letters[place] for place in draws.permutation(len(letters))])
    return "".join(each if each.isspace() else next(others) for each in text)


def _noise(image: Any, draws: np.random.Generator) -> Any:
    from PIL import Image

    from sft_engine.images.decoding import decode

    width, height = decode(image).size
    pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
