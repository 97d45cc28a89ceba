"""A look at the data before training: what would make the result worthless, or mean less than it seems.

Every finding is a sentence with figures. Only a training split without any target stops the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_engine.columns import (
    AUDIO,
    DIGESTS,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    ROW,
    column_of,
    is_list,
    is_text,
    row_numbers,
)
from sft_engine.preparation import class_counts

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine.components import Examples, Task

    Mask = NDArray[np.bool_]

IMBALANCE = 10
"""Largest class over smallest class from which on it is worth a warning."""
UNKNOWN = 0.01
"""Share of unknown tokens from which on vocabulary and data do not fit."""
SHIFT = 0.05
"""Smallest difference of label shares (total variation) that is worth a warning."""
FAR = 0.25
"""Smallest difference of target means, in standard deviations, that is worth a warning."""
TINY = 16
"""Pixels of the shorter edge below which a network made for photos sees little."""

_MASKED = -100
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Something about the data.

    Args:
        level: Whether it stops the run.
        message: One sentence, with figures.
    """

    level: Literal["stop", "warn"]
    message: str


def preflight(
    splits: Mapping[str, Dataset],
    task: Task,
    examples: Mapping[str, Examples] | None = None,
    streams: Collection[str] = (),
) -> list[Finding]:
    """Look at prepared splits.

    Args:
        splits: As `preparation` returns them.
        task: Prepared.
        examples: The same splits encoded, where they are. Their optional attributes are read:
            `truncated` (bool, one an example), `unknown_share` (of tokens, one number),
            `supervised` (share of targets that are not masked, one an example).
        streams: Splits that are further training data, and need not be like the others.
    """
    encoded = examples or {}
    findings: list[Finding] = []
    for name, rows in splits.items():
        findings += _supervised(name, rows, encoded.get(name), needed=name in ("train", *streams))
        findings += _empty(name, rows, task)
        findings += _tiny(name, rows)
        findings += _sounds(name, rows, task)
        findings += _encoding(name, encoded.get(name))
    target = {name: rows for name, rows in splits.items() if name not in streams}
    findings += _classes(target, task)
    findings += _duplicates(target, task)
    findings += _shifts(target, task)
    for name in streams:
        findings += _stream(name, splits[name], target, task)
    return findings


def _warn(message: str) -> Finding:
    return Finding("warn", message)


# --- one split at a time -------------------------------------------------------------------------


def _supervised(
    name: str, rows: Dataset, examples: Examples | None, *, needed: bool
) -> Iterator[Finding]:
    """Count rows whose target is masked or absent."""
    share = getattr(examples, "supervised", None)
    if share is None:
        share = _has_target(rows)
    learned, total = int(np.count_nonzero(share)), len(rows)
    if learned == 0 and needed:
        yield Finding(
            "stop",
            f"all {total} targets of the split '{name}' are masked or absent: there is nothing to "
            "learn; check data.columns and how the targets were made.",
        )
    elif learned < total:
        yield _warn(
            f"{_part(total - learned, total)} rows of the split '{name}' have no target: they are "
            "neither learned nor counted."
        )


def _has_target(rows: Dataset) -> Mask:
    if "label" not in rows.column_names:
        return np.zeros(len(rows), dtype=np.bool_)
    array = column_of(rows, "label")
    present = np.array(array.is_valid())
    if pa.types.is_integer(array.type):
        present &= np.array(pc.not_equal(array, _MASKED).fill_null(fill_value=False))
    return present


def _empty(name: str, rows: Dataset, task: Task) -> Iterator[Finding]:
    for role in task.inputs:
        text = _text(rows, role)
        if text is None:
            continue
        empty = np.flatnonzero(np.array(pc.equal(pc.utf8_trim_whitespace(text), "")))
        if len(empty):
            yield _warn(
                f"{_part(len(empty), len(rows))} rows of the split '{name}' have an empty '{role}' "
                f"({_rows_listed(rows, empty)})."
            )


def _rows_listed(rows: Dataset, ids: NDArray[np.int64]) -> str:
    numbers = row_numbers(rows)[ids[:_SHOWN]]
    more = ", ..." if len(ids) > _SHOWN else ""
    return f"rows {', '.join(map(str, numbers))}{more}, counted from 0"


def _tiny(name: str, rows: Dataset) -> Iterator[Finding]:
    """Count images that are little more than dots; their size is known once they were checked."""
    if IMAGE_WIDTH not in rows.column_names:
        return
    edges = [np.asarray(column_of(rows, each)) for each in (IMAGE_WIDTH, IMAGE_HEIGHT)]
    shorter = np.minimum(*edges)
    tiny = np.flatnonzero(shorter < TINY)
    if len(tiny):
        yield _warn(
            f"{_part(len(tiny), len(rows))} images of the split '{name}' are less than {TINY} pixels wide "
            f"or high, the smallest {shorter.min()} ({_rows_listed(rows, tiny)}): enlarged, they show "
            "little."
        )


def _sounds(name: str, rows: Dataset, task: Task) -> Iterator[Finding]:
    """Count recordings that are silent or very short."""
    if AUDIO in task.inputs:
        from sft_engine.audio.checking import remarks

        yield from map(_warn, remarks(name, rows))


def _text(rows: Dataset, role: str) -> Any:
    """Return a column of strings, nulls as empty ones; None if it holds something else.

    Images and recordings are compared by the hash of their content.
    """
    role = DIGESTS.get(role, role)
    if role not in rows.column_names:
        return None
    array = column_of(rows, role)
    return array.fill_null("") if is_text(array.type) else None


def _encoding(name: str, examples: Examples | None) -> Iterator[Finding]:
    truncated = getattr(examples, "truncated", None)
    if truncated is not None and np.any(truncated):
        yield _warn(
            f"{_part(int(np.sum(truncated)), len(truncated))} inputs of the split '{name}' are longer "
            "than the model takes and were cut off."
        )
    unknown = float(getattr(examples, "unknown_share", 0.0) or 0.0)
    if unknown > UNKNOWN:
        yield _warn(
            f"{unknown:.1%} of the tokens of the split '{name}' are unknown to the backbone's "
            "vocabulary: it was made for other text (language, case, script?)."
        )


# --- classes -------------------------------------------------------------------------------------


def _classes(splits: Mapping[str, Dataset], task: Task) -> Iterator[Finding]:
    """Report classes that are rare, absent or far more frequent than others."""
    if task.head.kind == "regression":
        return
    names = task.head.names
    counts = {
        split: class_counts(rows, names)
        for split, rows in splits.items()
        if "label" in rows.column_names
    }
    train = counts.get("train", {})
    yield from _rare(train)
    for split, each in counts.items():
        absent = [name for name, count in each.items() if count == 0]
        if absent and split != "train":
            yield _warn(
                f"the split '{split}' has no example of {len(absent)} of {len(each)} classes "
                f"({_first(absent)}): its metrics say nothing about them."
            )
    present = {name: count for name, count in train.items() if count}
    if present and max(present.values()) > IMBALANCE * min(present.values()):
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        yield _warn(
            f"the largest class '{most}' has {present[most]} training rows, the smallest '{least}' "
            f"{present[least]} ({present[most] / present[least]:.0f} to 1): accuracy hides the small "
            'one; see f1, class_weights = "balanced" and resample = "balanced".'
        )


def _rare(train: Mapping[str, int]) -> Iterator[Finding]:
    absent = [name for name, count in train.items() if count == 0]
    if absent:
        yield _warn(
            f"{len(absent)} of {len(train)} classes have no training row ({_first(absent)}): the "
            "model cannot learn them."
        )
    single = [name for name, count in train.items() if count == 1]
    if single:
        yield _warn(
            f"{len(single)} of {len(train)} classes have one training row ({_first(single)}): too "
            "few to learn or to validate."
        )


# --- duplicates ----------------------------------------------------------------------------------


def _duplicates(splits: Mapping[str, Dataset], task: Task) -> Iterator[Finding]:
    """Compare inputs, case and blanks aside, within the training split and across splits."""
    if "train" not in splits:
        return
    rows = {name: _once(split) for name, split in splits.items()}
    keys = _keys(rows, task)
    if not keys:
        return
    label = {name: _label_codes(split) for name, split in rows.items()}
    yield from _within(keys["train"], label["train"])
    for name in keys:
        if name != "train":
            yield from _across(name, keys, label)


def _once(rows: Dataset) -> Dataset:
    """Leave out repetitions that resampling made."""
    _, first = np.unique(row_numbers(rows), return_index=True)
    if ROW not in rows.column_names or len(first) == len(rows):
        return rows
    return rows.select(np.sort(first))


def _keys(splits: Mapping[str, Dataset], task: Task) -> dict[str, NDArray[np.int64]]:
    """Return a number for each row, equal where the normalised texts of all input roles are."""
    texts = {}
    for name, rows in splits.items():
        columns = [text for role in task.inputs if (text := _text(rows, role)) is not None]
        if not columns:
            return {}
        normalised = [_normalised(column.cast(pa.large_string())) for column in columns]
        texts[name] = (
            pc.binary_join_element_wise(*normalised, pa.scalar("\x1f", pa.large_string()))
            if len(columns) > 1
            else normalised[0]
        )
    codes = pa.chunked_array(list(texts.values())).combine_chunks().dictionary_encode().indices
    bounds = np.cumsum([len(text) for text in texts.values()])[:-1]
    return dict(zip(texts, np.split(np.asarray(codes, dtype=np.int64), bounds), strict=True))


def _normalised(text: Any) -> Any:
    spaced = pc.replace_substring_regex(pc.utf8_lower(text), r"\s+", " ")
    return pc.utf8_trim_whitespace(spaced)


def _label_codes(rows: Dataset) -> NDArray[np.int64]:
    """Return a number for each row, equal where targets are."""
    if "label" not in rows.column_names:
        return np.zeros(len(rows), dtype=np.int64)
    array = column_of(rows, "label")
    if not is_list(array.type):
        return np.asarray(array.fill_null(_MASKED), dtype=np.int64)
    values = np.asarray(array.flatten(), dtype=np.float64).reshape(len(rows), -1)
    # equal rows get equal numbers in every split: the bytes of a row are the number
    digits = np.ascontiguousarray(values).view(np.uint64)
    power = np.uint64(0x9E3779B97F4A7C15)
    total = np.zeros(len(rows), dtype=np.uint64)
    for column in digits.T:
        total = (total ^ column) * power
    return total.view(np.int64)


def _within(keys: NDArray[np.int64], label: NDArray[np.int64]) -> Iterator[Finding]:
    repeated = len(keys) - len(np.unique(keys))
    if repeated:
        pairs = len(np.unique(np.stack([keys, label]), axis=1).T)
        conflicting = pairs - len(np.unique(keys))
        yield _warn(
            f"{_part(repeated, len(keys))} training rows repeat the input of another one, "
            f"{conflicting} of them with another target."
        )


def _across(
    name: str, keys: Mapping[str, NDArray[np.int64]], label: Mapping[str, NDArray[np.int64]]
) -> Iterator[Finding]:
    shared = np.isin(keys[name], keys["train"])
    if not shared.any():
        return
    seen = set(zip(keys["train"].tolist(), label["train"].tolist(), strict=True))
    here = zip(keys[name][shared].tolist(), label[name][shared].tolist(), strict=True)
    same = sum(pair in seen for pair in here)
    count = int(shared.sum())
    yield _warn(
        f"{_part(count, len(shared))} rows of the split '{name}' have an input that is in the training "
        f"split too ({same} with the same target, {count - same} with another): its metrics are "
        "partly memory."
    )


# --- streams -------------------------------------------------------------------------------------


def _stream(
    name: str, rows: Dataset, target: Mapping[str, Dataset], task: Task
) -> Iterator[Finding]:
    """Compare a stream with the target data: labels in common, inputs that evaluation uses."""
    if task.head.kind != "regression" and "label" in rows.column_names:
        yield from _apart(name, rows, target["train"], task.head.names)
    judged = {split: each for split, each in target.items() if split != "train"}
    keys = _keys({"train": _once(rows), **judged}, task)
    label = {"train": _label_codes(_once(rows)), **{s: _label_codes(r) for s, r in judged.items()}}
    for split in judged if keys else ():
        for finding in _across(split, keys, label):
            where = f"in the stream '{name}' too"
            yield _warn(finding.message.replace("in the training split too", where))


def _apart(name: str, rows: Dataset, train: Dataset, names: tuple[str, ...]) -> Iterator[Finding]:
    own, other = (
        [label for label, count in class_counts(each, names).items() if count]
        for each in (rows, train)
    )
    if not set(own) & set(other):
        yield _warn(
            f"the stream '{name}' ({_first(own)}) and the training split ({_first(other)}) have no "
            f"label in common: the head has {len(names)} outputs, and each of them learns from one "
            "side only; if they mean the same, give them the same names."
        )


# --- shift ---------------------------------------------------------------------------------------


def _shifts(splits: Mapping[str, Dataset], task: Task) -> Iterator[Finding]:
    """Compare the targets of the training split with those of the others."""
    labelled = {name: rows for name, rows in splits.items() if "label" in rows.column_names}
    train = labelled.pop("train", None)
    if train is None:
        return
    for name, rows in labelled.items():
        if task.head.kind == "regression":
            yield from _moved(name, _numbers(train), _numbers(rows), task.head.names)
        elif task.head.kind == "classification":
            names = task.head.names
            yield from _shifted(name, class_counts(train, names), class_counts(rows, names))


def _shifted(split: str, train: Mapping[str, int], other: Mapping[str, int]) -> Iterator[Finding]:
    """Warn if class shares differ by more than chance (chi-squared, four standard deviations)."""
    a = np.array(list(train.values()), dtype=np.float64)
    b = np.array(list(other.values()), dtype=np.float64)
    both = a + b > 0
    if a.sum() == 0 or b.sum() == 0 or both.sum() <= 1:
        return
    ratio = np.sqrt(b.sum() / a.sum())
    chi2 = float((((ratio * a - b / ratio)[both]) ** 2 / (a + b)[both]).sum())
    free = int(both.sum()) - 1
    difference = b / b.sum() - a / a.sum()
    distance = float(np.abs(difference).sum() / 2)
    if distance > SHIFT and chi2 > free + 4 * np.sqrt(2 * free):
        worst = int(np.argmax(np.abs(difference)))
        name = list(train)[worst]
        yield _warn(
            f"classes are distributed differently in the split '{split}' than in training: "
            f"{distance:.0%} of its rows would have to change class, '{name}' most "
            f"({a[worst] / a.sum():.0%} in training, {b[worst] / b.sum():.0%} there)."
        )


def _numbers(rows: Dataset) -> NDArray[np.float64]:
    array = column_of(rows, "label")
    return np.asarray(array.flatten(), dtype=np.float64).reshape(len(rows), -1)


def _moved(
    split: str, train: NDArray[np.float64], other: NDArray[np.float64], names: tuple[str, ...]
) -> Iterator[Finding]:
    for index, name in enumerate(names):
        a, b = train[:, index], other[:, index]
        spread = float(a.std())
        moved = abs(b.mean() - a.mean()) / spread if spread else 0.0
        if moved > FAR:
            yield _warn(
                f"the mean of the target '{name}' is {a.mean():.3g} in training and {b.mean():.3g} in "
                f"the split '{split}', {moved:.1f} standard deviations apart."
            )


def _part(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.1%})"


def _first(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (
        ", ..." if len(names) > _SHOWN else ""
    )
