"""From raw splits to prepared ones: columns become roles, missing splits are drawn, labels become ids.

Whoever draws here draws with `order.permutation` from a seed of its own, so that the same recipe gets
the same test split in every run of a study, on every machine, with every version of every library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine import order
from sft_engine.columns import (
    IMAGE,
    ROW,
    column_of,
    fingerprint,
    folder_of,
    missing,
    with_column,
)
from sft_engine.errors import DataError
from sft_engine.sentences import suggest
from sft_engine.tables import check_accepted, named_columns, with_tables

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine.components import Backbone, Task
    from sft_engine.flow import Seeds
    from sft_engine.settings import DataSettings, StreamSettings

    Ids = NDArray[np.int64]

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
    splits = _hold_out(splits, settings, task)
    splits["train"] = _reduced(splits["train"], settings, task, seeds.subset)
    splits = _images_checked(splits, task)
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
        reduced = _reduced(ready["train"], same, task, seed)
        return _images_checked({settings.name: reduced}, task)[settings.name]
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
    splits = _images_checked(splits, task)
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
        ready[name] = _with_images(numbered, name, folder_of(rows), task, skip=skip)
    return ready


def _with_images(
    rows: Dataset, split: str, folder: Path | None, task: Task, *, skip: bool
) -> Dataset:
    """Make image paths absolute; leave out broken images, before anything is drawn, if asked to."""
    if IMAGE not in task.inputs or IMAGE not in rows.column_names:
        return rows
    from sft_engine.images.checking import checked, located

    found = located(rows, split, (folder or Path()).absolute())
    return checked(found, split, skip=True) if skip else found


def _images_checked(splits: dict[str, Dataset], task: Task) -> dict[str, Dataset]:
    """Look at the images that are used, and no others; a broken one stops the run."""
    if IMAGE not in task.inputs:
        return splits
    from sft_engine.images.checking import checked

    return {
        name: checked(rows, name, skip=False) if IMAGE in rows.column_names else rows
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


# --- drawing -------------------------------------------------------------------------------------


def _hold_out(splits: dict[str, Dataset], settings: DataSettings, task: Task) -> dict[str, Dataset]:
    """Draw the test split, then the validation split, from training where the source lacks them."""
    train = splits["train"]
    total, left = len(train), np.arange(len(train))
    strata = _strata(train, settings, task)
    drawn = {}
    for name, amount in (("test", settings.test), ("validation", settings.validation)):
        if name in splits or not amount:
            continue
        count = amount_of(amount, total, name)
        classes = None if strata is None else strata[left]
        seed = order.mix(settings.split_seed, order.name_key(name))
        _check_held_out(count, len(left), classes, f"{name} = {amount:g}")
        held = choose(len(left), count, seed, classes, leave_one=True)
        drawn[name] = left[held]
        left = np.delete(left, held)
    if not drawn:
        return splits
    selected = {name: train.select(ids) for name, ids in drawn.items()}
    return splits | selected | {"train": train.select(left)}


def amount_of(amount: float, total: int, key: str) -> int:
    """Return how many of `total` rows a share (below 1) or a number of rows is.

    Raises:
        DataError: it is none, or more than there are.
    """
    count = int(amount * total + 0.5) if amount < 1 else int(amount)
    if count == 0:
        raise DataError(f"[data] {key} = {amount:g} of {total} rows is no row; raise it, or set 0.")
    if count > total:
        raise DataError(f"[data] {key} = {count}: there are only {total} training rows.")
    return count


def _check_held_out(count: int, total: int, classes: Ids | None, where: str) -> None:
    if count >= total:
        raise DataError(f"[data] {where} leaves none of {total} rows to train on; lower it.")
    if classes is None:
        return
    sizes = np.bincount(classes - classes.min())
    number = int((sizes > 0).sum())
    if count < number:
        raise DataError(
            f"[data] {where} holds out {count} rows, fewer than the {number} classes; raise it to "
            f"{number} rows or more, or set stratify = false."
        )
    if count > np.maximum(sizes - 1, 0).sum():
        raise DataError(
            f"[data] {where} holds out {count} of {total} rows, which leaves some of the {number} "
            "classes without a training row; lower it, or set stratify = false."
        )


def _strata(rows: Dataset, settings: DataSettings, task: Task) -> Ids | None:
    """Return a number for each row, equal where classes are, or None if there are no classes."""
    read = getattr(task, "strata", None)
    if not settings.stratify or read is None:
        return None
    strata: Ids | None = read(rows)
    return strata


def choose(
    n: int, count: int, seed: int, strata: Ids | None = None, *, leave_one: bool = False
) -> Ids:
    """Draw `count` of the numbers 0..n-1 without replacement, and return them in order.

    Args:
        n: How many there are.
        count: How many to draw.
        seed: Decides, together with n and the strata, and nothing else does.
        strata: The class of each number; classes are drawn in proportion to their size.
        leave_one: Leave at least one of each class; else draw at least one where count allows.
    """
    ids = order.permutation(n, seed, 0)
    if strata is None:
        return np.sort(ids[:count])
    _, classes, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    quotas = _quotas(sizes, count, leave_one=leave_one)
    shuffled = classes[ids]
    grouped = np.argsort(shuffled, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[grouped] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(ids[place < quotas[shuffled]])


def _quotas(sizes: Ids, count: int, *, leave_one: bool) -> Ids:
    """Return how many to draw of each class: in proportion, by largest remainder, within limits."""
    exact = sizes * (count / sizes.sum())
    most = np.maximum(sizes - 1, 0) if leave_one else sizes
    least = np.zeros_like(sizes) if leave_one or count < len(sizes) else np.minimum(sizes, 1)
    quotas: Ids = np.clip(np.floor(exact).astype(np.int64), least, most)
    while quotas.sum() != count:
        short = quotas.sum() < count
        wanted = np.where(quotas < most, exact - quotas, -np.inf)
        excess = np.where(quotas > least, quotas - exact, -np.inf)
        quotas[np.argmax(wanted if short else excess)] += 1 if short else -1
    return quotas


def _reduced(train: Dataset, settings: DataSettings, task: Task, seed: int) -> Dataset:
    """Apply `subset`, then `resample`, to the training split."""
    if settings.subset:
        count = amount_of(settings.subset, len(train), "subset")
        train = train.select(choose(len(train), count, seed, _strata(train, settings, task)))
    if settings.resample == "bootstrap":
        ones = np.ones(len(train))
        return train.select(np.sort(order.draw(ones, len(train), order.mix(seed, 1), 0)))
    if settings.resample == "balanced":
        return train.select(_balanced(train, task, seed))
    return train


def _balanced(train: Dataset, task: Task, seed: int) -> Ids:
    """Repeat rows of the smaller classes until every class has as many rows as the largest one."""
    read = getattr(task, "strata", None)
    strata = None if read is None else read(train)
    if strata is None:
        raise DataError(
            '[data] resample = "balanced" needs one class a row, and this task has none; use "none" '
            'or "bootstrap".'
        )
    ids = order.permutation(len(train), order.mix(seed, 2), 0)
    _, classes, sizes = np.unique(strata[ids], return_inverse=True, return_counts=True)
    members = (ids[classes == index] for index in range(len(sizes)))
    repeated: Ids = np.concatenate([np.resize(each, sizes.max()) for each in members])
    repeated.sort()
    return repeated


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
