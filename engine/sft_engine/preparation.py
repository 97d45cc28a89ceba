"""From raw splits to prepared ones: columns become roles, missing splits are drawn, labels become ids.

What is drawn of a split is in `drawing`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.columns import (
    AUDIO,
    IMAGE,
    ROW,
    column_of,
    fingerprint,
    folder_of,
    missing,
    with_column,
)
from sft_engine.drawing import hold_out, reduced
from sft_engine.errors import DataError
from sft_engine.sentences import suggest
from sft_engine.tables import check_accepted, named_columns, with_tables

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine.components import Backbone, Task
    from sft_engine.flow import Seeds
    from sft_engine.settings import DataSettings, StreamSettings

__all__ = ["class_counts", "fingerprint", "prepare_given", "prepare_splits", "prepare_stream"]

ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "development"),
    "test": ("test", "testing"),
}
"""What sources call the three splits, best first."""

LIKELY = {
    "text": ("sentence", "content", "review", "document", "body", "tweet", "comment", "sentence1"),
    "image": ("img", "picture", "photo", "file", "file_name", "filename", "path", "image_path"),
    "audio": ("path", "file", "file_name", "filename", "wav", "recording", "speech", "sound"),
    "label": (
        "labels",
        "class",
        "target",
        "category",
        "sentiment",
        "stars",
        "rating",
        "score",
        "y",
    ),
}
"""What sources call a role: for the hint when a column is missing."""

_log = logging.getLogger("sft_engine")


def prepare_splits(
    raw: Mapping[str, Dataset],
    settings: DataSettings,
    task: Task,
    seeds: Seeds,
    streams: Mapping[str, Dataset] | None = None,
) -> dict[str, Dataset]:
    """Return the splits a run trains on and is judged by: train, validation, test, then all others.

    Every row carries its number in the source's split as column `row`. Splits that are not among the
    three are kept only if `settings.splits` names them. If the source has no validation or test
    split, they are drawn from the training split, the test split first. Further streams come last,
    each as a split of its own; they share the names of the labels.

    Raises:
        DataError: a split, column or label is missing, or a split is too small.
    """
    named = _with_train(raw, settings)
    splits = _ready(named, settings, task)
    splits = hold_out(splits, settings, task)
    splits["train"] = reduced(splits["train"], settings, task, seeds.subset)
    splits = _files_checked(splits, task)
    first = [name for name in ALIASES if name in splits]
    ordered = {name: splits[name] for name in dict.fromkeys([*first, *splits])}
    if streams:
        return _prepare_all(ordered, streams, settings, task)
    return task.prepare(ordered, settings.label_names)


def settle(
    raw: Mapping[str, Dataset],
    settings: DataSettings,
    task: Task,
    backbone: Backbone,
    names: Callable[[str], str],
) -> DataSettings:
    """Return the settings with the columns of every table named, as the training split has them.

    Args:
        raw: The splits of the source.
        settings: As the recipe gives them.
        task: The task.
        backbone: Asked whether it takes what the task gives.
        names: Gives the name of a kind's component in the recipe, for messages.

    Raises:
        DataError: there are no such columns, or the backbone takes something else.
    """
    train = _named(raw, settings).get("train")
    if train is None:
        return settings
    columns = named_columns(train, settings.columns, task)
    check_accepted(task, backbone, names, columns, train)
    return replace(settings, columns=columns)


def prepare_stream(
    raw: Mapping[str, Dataset], settings: StreamSettings, task: Task, seed: int
) -> Dataset:
    """Return the training split of a stream, ready for `prepare_splits`.

    Args:
        raw: The splits of its source.
        settings: The engine's keys of `[[stream]]`.
        task: The task.
        seed: Of `subset` and `resample`.

    Raises:
        DataError: a split or column is missing.
    """
    from sft_engine.settings import DataSettings

    keys = ("columns", "stratify", "subset", "resample", "on_error")
    # All other splits are of no use here, and may be broken.
    splits = {"train": settings.splits.get("train", ""), "validation": "", "test": ""}
    splits = {name: source for name, source in splits.items() if source or name != "train"}
    same = DataSettings(splits=splits, **{key: getattr(settings, key) for key in keys})
    try:
        ready = _ready({"train": _with_train(raw, same)["train"]}, same, task)
        rows = reduced(ready["train"], same, task, seed)
        return _files_checked({settings.name: rows}, task)[settings.name]
    except DataError as error:
        raise DataError(_of_stream(str(error), settings.name)) from error


def _with_train(raw: Mapping[str, Dataset], settings: DataSettings) -> dict[str, Dataset]:
    """Return splits under our names; one of them must be the one to train on."""
    named = _named(raw, settings)
    if "train" not in named:
        raise DataError(
            f"[data] there is no split 'train' (found: {_listed(raw)}); name the one to train on: "
            'splits = {train = "..."}.'
        )
    return named


def _of_stream(message: str, name: str) -> str:
    """Let a message that is about `[data]` be about a stream."""
    where = f'[[stream]] "{name}"'
    return message.replace("[data]", where).replace("data.", "stream.")


def _prepare_all(
    splits: Mapping[str, Dataset],
    streams: Mapping[str, Dataset],
    settings: DataSettings,
    task: Task,
) -> dict[str, Dataset]:
    """Prepare splits and streams together, under the names that any of them has."""
    for name in streams:
        if name in splits:
            raise DataError(
                f'[[stream]] "{name}" is called like a split of [data]; choose another name for it.'
            )
    names = settings.label_names
    read = getattr(task, "found_names", None)
    if not names and read is not None:
        found = [read(rows, name) for name, rows in {"train": splits["train"], **streams}.items()]
        names = tuple(dict.fromkeys(name for each in found for name in each))
    return task.prepare({**splits, **streams}, names)


def prepare_given(
    raw: Mapping[str, Dataset], settings: DataSettings, task: Task, *, need_target: bool = True
) -> dict[str, Dataset]:
    """Prepare other data for a trained model: nothing is drawn, and all its splits are kept.

    Args:
        raw: Splits under any names.
        settings: Its `label_names` are those of the trained model.
        task: The task.
        need_target: Whether rows must have a target; without, they can be predicted.

    Raises:
        DataError: a column or label is missing or unknown.
    """
    splits = _ready(dict(raw), settings, task, need_target=need_target)
    splits = _files_checked(splits, task)
    return task.prepare(splits, settings.label_names)


def class_counts(rows: Dataset, names: Iterable[str]) -> dict[str, int]:
    """Return how many rows of a prepared split have each class or label."""
    known = tuple(names)
    label = _label_array(rows)
    if label.ndim == 1:
        counts = np.bincount(label[label >= 0].astype(np.int64), minlength=len(known))
    else:
        counts = label.sum(axis=0)
    return {name: int(count) for name, count in zip(known, counts, strict=True)}


def _label_array(rows: Dataset) -> NDArray[Any]:
    array = column_of(rows, "label")
    if hasattr(array, "flatten") and hasattr(array.type, "value_type"):
        return np.asarray(array.flatten()).reshape(len(rows), -1)
    return np.asarray(array)


# --- names of splits and columns -----------------------------------------------------------------


def _named(raw: Mapping[str, Dataset], settings: DataSettings) -> dict[str, Dataset]:
    """Return splits under our names. An empty name in `settings.splits` leaves a split out."""
    splits: dict[str, Dataset] = {}
    for name, source in settings.splits.items():
        if source and source not in raw:
            near = suggest(source, raw)
            raise DataError(
                f"[data] splits.{name} = '{source}': the source has no such split (found: "
                f"{_listed(raw)}){'; ' + near if near else '.'}"
            )
        if source:
            splits[name] = raw[source]
    taken = set(settings.splits.values())
    for name, aliases in ALIASES.items():
        found = next((a for a in aliases if a in raw and a not in taken), None)
        if name not in settings.splits and found is not None:
            splits[name] = raw[found]
    return splits


def _ready(
    splits: Mapping[str, Dataset],
    settings: DataSettings,
    task: Task,
    *,
    need_target: bool = True,
) -> dict[str, Dataset]:
    """Rename columns, number the rows, check that the required columns are there and filled."""
    inputs = [role for role, needed in task.inputs.items() if needed]
    targets = [task.target] if need_target else []
    ready = {}
    for name, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"[data] the split '{name}' has no rows; leave it out or fill it.")
        skip = settings.on_error == "skip"
        columns = named_columns(rows, settings.columns, task)
        joined, single = with_tables(rows.with_format(None), columns, name, skip=skip)
        renamed = _renamed(joined, name, single)
        _check_columns(renamed, rows, name, [*inputs, *targets])
        numbered = _numbered(renamed)
        if skip:
            numbered = _without_gaps(numbered, name, inputs, targets)
        _check_inputs(numbered, name, inputs)
        ready[name] = _with_files(numbered, name, folder_of(rows), task, skip=skip)
    return ready


def _files_of(task: Task) -> tuple[str, Any]:
    """Return the role whose values are files, and the module that checks them; or two blanks."""
    if IMAGE in task.inputs:
        from sft_engine.images import checking as images

        return IMAGE, images
    if AUDIO in task.inputs:
        from sft_engine.audio import checking as audio

        return AUDIO, audio
    return "", None


def _with_files(
    rows: Dataset, split: str, folder: Path | None, task: Task, *, skip: bool
) -> Dataset:
    """Make paths of files absolute; leave out broken files, before anything is drawn, if asked to."""
    role, checking = _files_of(task)
    if role not in rows.column_names:
        return rows
    found: Dataset = checking.located(rows, split, (folder or Path()).absolute())
    return checking.checked(found, split, skip=True) if skip else found


def _files_checked(splits: dict[str, Dataset], task: Task) -> dict[str, Dataset]:
    """Look at the files that are used, and no others; a broken one stops the run."""
    role, checking = _files_of(task)
    return {
        name: checking.checked(rows, name, skip=False) if role in rows.column_names else rows
        for name, rows in splits.items()
    }


def _renamed(rows: Dataset, split: str, columns: Mapping[str, str]) -> Dataset:
    """Give columns the names of their roles; a column that already had one becomes `source_ROLE`."""
    for role, column in columns.items():
        if column not in rows.column_names:
            near = suggest(column, rows.column_names)
            raise DataError(
                f"[data] columns.{role} = '{column}': the split '{split}' has no such column (found: "
                f"{_listed(rows.column_names)}){'; ' + near if near else '.'}"
            )
    if len(set(columns.values())) < len(columns):
        raise DataError(
            f"[data] columns names one column for two roles ({_listed(columns)}); a column has one."
        )
    names = {column: role for role, column in columns.items()}
    for taken in {*columns, ROW}:
        if taken in rows.column_names and taken not in names:
            names[taken] = f"source_{taken}"
    changes = {old: new for old, new in names.items() if old != new}
    return rows.rename_columns(changes) if changes else rows


def _check_columns(renamed: Dataset, source: Dataset, split: str, required: list[str]) -> None:
    for role in required:
        if role in renamed.column_names:
            continue
        found = source.column_names
        likely = [name for name in LIKELY.get(role, ()) if name in found]
        guess = likely[0] if likely else "..."
        raise DataError(
            f"[data] the split '{split}' has no column '{role}' (found: {_listed(found)}); say which "
            f'one it is: columns = {{{role} = "{guess}"}}.'
        )


def _numbered(rows: Dataset) -> Dataset:
    from datasets import Value

    if rows._indices is not None:  # noqa: SLF001 - a row may be in a selection twice
        rows = rows.flatten_indices()
    return with_column(rows, ROW, np.arange(len(rows)), Value("int64"))


def _check_inputs(rows: Dataset, split: str, required: Sequence[str]) -> None:
    for role in required:
        empty = missing(rows, role)
        if empty.any():
            raise DataError(
                f"[data] split '{split}': {int(empty.sum())} of {len(rows)} rows have no '{role}' (row "
                f"{int(np.flatnonzero(empty)[0])} is the first, counted from 0); fill them in, or set "
                'on_error = "skip" in [data] to leave them out.'
            )


def _without_gaps(
    rows: Dataset, split: str, inputs: Sequence[str], targets: Sequence[str]
) -> Dataset:
    """Leave out rows that lack a required input or a target."""
    gaps = np.zeros(len(rows), dtype=np.bool_)
    for role in inputs:
        gaps |= missing(rows, role)
    for role in targets:
        gaps |= missing(rows, role, empty=True)
    if gaps.all():
        raise DataError(f"[data] split '{split}': none of {len(rows)} rows has input and target.")
    if not gaps.any():
        return rows
    _log.warning(
        "[data] split '%s': %d of %d rows left out: their input or target is missing",
        split,
        int(gaps.sum()),
        len(rows),
    )
    return rows.select(np.flatnonzero(~gaps))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
