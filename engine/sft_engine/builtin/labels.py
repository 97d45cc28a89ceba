"""Labels of a column as names, and names as class ids; no torch.

A label is compared by its name, so that 1, 1.0 and "1" are one label whichever file it comes from. An
empty string, a null, NaN and -1 of a Hugging Face `ClassLabel` column are missing labels; -100 is the
field's sign for "do not learn from this one" (torch's `ignore_index`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_engine.columns import column_of, is_list, is_text, row_numbers
from sft_engine.errors import DataError
from sft_engine.sentences import show_value, suggest

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]

MASKED = -100
"""The id of a target that is neither learned nor counted."""

_MASKED_NAME = str(MASKED)
_MISSING = -1
_SHOWN = 10
_FIRST = 3


@dataclass(frozen=True)
class Labels:
    """The labels of one split.

    Args:
        split: Its name, for messages.
        names: Distinct names in the order of the codes.
        codes: For each label its index in `names`, -1 where it is missing.
        rows: For each label the row that it belongs to; in single-label data 0, 1, 2, ...
        row_names: For each row its number in the source, for messages.
        class_names: Names that the column's type declares (`ClassLabel`), in the order of their ids.
        flags: Each row has one flag a class instead of a list of labels (multi-label only).
        missing_rows: Rows without any value.
    """

    split: str
    names: tuple[str, ...]
    codes: Ids
    rows: Ids
    row_names: Ids
    class_names: tuple[str, ...] = ()
    flags: NDArray[np.float32] | None = None
    missing_rows: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def read_single(rows: Dataset, column: str, split: str) -> Labels:
    """Read a column with one label a row.

    Raises:
        DataError: the column holds lists or other things that are no labels.
    """
    array = column_of(rows, column)
    names, codes = _coded(array, _class_names(rows.features[column]), split, column)
    missing = np.flatnonzero(codes == _MISSING)
    order = np.arange(len(codes))
    declared = _class_names(rows.features[column])
    return Labels(split, names, codes, order, row_numbers(rows), declared, missing_rows=missing)


def read_many(rows: Dataset, column: str, split: str, separator: str) -> Labels:
    """Read a column with any number of labels a row: a list, a string to be split, or flags.

    Lists of booleans or floats are flags, one a class. An empty list, or an empty string where there
    is a separator, is a row without labels; a null is a missing one.

    Raises:
        DataError: the rows have different numbers of flags, or hold no labels at all.
    """
    array = column_of(rows, column)
    missing = np.flatnonzero(np.asarray(array.is_null()))
    if is_text(array.type):
        array = _split(array, separator)
    if not is_list(array.type):
        array = pa.array([None if v is None else [v] for v in array.to_pylist()])
    lists = array.fill_null(pa.scalar([], array.type)) if array.null_count else array
    lengths = np.asarray(pc.list_value_length(lists), dtype=np.int64)
    owner = np.repeat(np.arange(len(rows)), lengths)
    values, declared = lists.flatten(), _class_names(rows.features[column])
    numbers = row_numbers(rows)
    if pa.types.is_boolean(values.type) or pa.types.is_floating(values.type):
        table = _flags(values, lengths, missing, split, column)
        empty = np.empty(0, dtype=np.int64)
        return Labels(split, (), empty, empty, numbers, declared, table, missing)
    names, codes = _coded(values, declared, split, column)
    missing = np.union1d(missing, owner[codes == _MISSING])
    return Labels(split, names, codes, owner, numbers, declared, missing_rows=missing)


def _split(array: Any, separator: str) -> Any:
    """Split strings at the separator, drop blanks around the parts, and empty parts."""
    parts = []
    for text in array.to_pylist():
        pieces = [] if text is None else [text] if not separator else text.split(separator)
        parts.append(None if text is None else [p.strip() for p in pieces if p.strip()])
    return pa.array(parts, type=pa.list_(pa.string()))


def _flags(values: Any, lengths: Ids, missing: Ids, split: str, column: str) -> NDArray[np.float32]:
    present = np.setdiff1d(np.arange(len(lengths)), missing)
    width = int(lengths[present[0]]) if len(present) else 0
    if (lengths[present] != width).any():
        raise DataError(
            f"[data] split '{split}': column '{column}' holds flags (one a class), "
            f"but rows have from {lengths[present].min()} to {lengths[present].max()} of them; "
            "give every row as many, or lists of label names."
        )
    table = np.zeros((len(lengths), width), dtype=np.float32)
    table[present] = np.asarray(values, dtype=np.float32).reshape(-1, width)
    return table


def _class_names(feature: Any) -> tuple[str, ...]:
    inner = getattr(feature, "feature", feature)
    return tuple(getattr(inner, "names", None) or ())


def _coded(
    array: Any, declared: tuple[str, ...], split: str, column: str
) -> tuple[tuple[str, ...], Ids]:
    """Return distinct label names and, for each value, the index of its name."""
    where = f"[data] split '{split}': column '{column}'"
    if pa.types.is_nested(array.type):
        raise _no_label(next((v for v in array.to_pylist() if v is not None), None), where)
    encoded = array.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    names: dict[str, int] = {}
    codes = np.full(len(values) + 1, _MISSING, dtype=np.int64)  # the last one stands for null
    for index, value in enumerate(values):
        name = label_name(value, declared, where)
        if name is not None:
            codes[index] = names.setdefault(name, len(names))
    indices = np.asarray(encoded.indices.fill_null(len(values)), dtype=np.int64)
    return tuple(names), codes[indices]


def label_name(value: Any, declared: Sequence[str] = (), where: str = "label") -> str | None:
    """Return the name of a label, or None if it is missing.

    Raises:
        DataError: the value is no label (a list, a table, bytes).
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        if not declared or value == MASKED:
            return str(value)
        return declared[value] if 0 <= value < len(declared) else None
    if isinstance(value, str):
        return value
    raise _no_label(value, where)


def _no_label(value: Any, where: str) -> DataError:
    return DataError(
        f"{where} holds {show_value(value)}, which is no label: a string, an integer or a boolean is; "
        'lists of labels need labels = "multi" in [task].'
    )


def learn_names(train: Labels, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the class names: those given, those that the column declares, or those found, sorted.

    Names that are all numbers are sorted as numbers.

    Raises:
        DataError: labels are missing, or a name was given twice.
    """
    _check_missing(train)
    found = _sorted(name for name in train.names if name != _MASKED_NAME)
    names = tuple(given) or train.class_names or found
    if train.flags is not None and not names:
        names = tuple(str(i) for i in range(train.flags.shape[1]))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"[data] label_names: '{twice}' stands there twice; name each class once.")
    return names


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    found = list(names)
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))


def encode_single(labels: Labels, names: Sequence[str]) -> Ids:
    """Return the class id of each row, -100 where it is masked.

    Raises:
        DataError: labels are missing, or a label is none of the names.
    """
    _check_missing(labels)
    return _ids(labels, names, {_MASKED_NAME: MASKED})[labels.codes]


def encode_many(labels: Labels, names: Sequence[str]) -> NDArray[np.float32]:
    """Return one flag a class for each row.

    Raises:
        DataError: labels are missing, a label is none of the names, or there are too many flags.
    """
    _check_missing(labels)
    flags = labels.flags
    if flags is None:
        flags = _flags_of_ids(labels, names)
    if flags is None:
        flags = np.zeros((len(labels.row_names), len(names)), dtype=np.float32)
        flags[labels.rows, _ids(labels, names)[labels.codes]] = 1.0
    if flags.shape[1] != len(names):
        raise DataError(
            f"[data] split '{labels.split}': a row has {flags.shape[1]} flags, "
            f"but there are {len(names)} classes: {show_names(names)}; check data.label_names."
        )
    return flags


def _flags_of_ids(labels: Labels, names: Sequence[str]) -> NDArray[np.float32] | None:
    """Read lists of 0 and 1 as flags where each is as long as there are classes with other names."""
    per_row = np.bincount(labels.rows, minlength=len(labels.row_names))
    if set(labels.names) != {"0", "1"} or set(labels.names) & set(names) or labels.class_names:
        return None
    if (per_row != len(names)).any():
        return None
    value = np.array([float(name) for name in labels.names], dtype=np.float32)
    return value[labels.codes].reshape(len(per_row), len(names))


def _check_missing(labels: Labels) -> None:
    count, total = len(labels.missing_rows), len(labels.row_names)
    if count == 0:
        return
    if count == total:
        raise DataError(
            f"[data] split '{labels.split}' has no labels ({total} rows, all without); name another "
            f'split in data.splits, or leave it out with splits = {{{labels.split} = ""}}.'
        )
    first = ", ".join(str(labels.row_names[i]) for i in labels.missing_rows[:_FIRST])
    more = ", ..." if count > _FIRST else ""
    raise DataError(
        f"[data] split '{labels.split}': {count} of {total} rows have no label (row {first}{more}, "
        'counted from 0); fill them in, or set on_error = "skip" in [data] to leave them out.'
    )


def _ids(labels: Labels, names: Sequence[str], masked: Mapping[str, int] | None = None) -> Ids:
    """Return the class id of each code."""
    known = _known(labels, names, set(masked or ())) | dict(masked or {})
    ids = np.empty(max(len(labels.names), 1), dtype=np.int64)
    for code, name in enumerate(labels.names):
        if name not in known:
            raise _unknown(labels, code, names)
        ids[code] = known[name]
    return ids


def _known(labels: Labels, names: Sequence[str], masked: set[str]) -> dict[str, int]:
    """Return ids by what the column calls each class.

    A column of ids 0, 1, 2, ... or of as many `ClassLabel` names may be given other names in the recipe.
    """
    by_name = {name: index for index, name in enumerate(names)}
    found = set(labels.names) - masked
    if found <= by_name.keys():
        return by_name
    by_id = {str(index): index for index in range(len(names))}
    if found <= by_id.keys() and not any(_is_integer(name) for name in names):
        return by_id
    declared = labels.class_names
    if len(declared) == len(names) and not set(declared) & set(names):
        return {name: index for index, name in enumerate(declared)}
    return by_name


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _unknown(labels: Labels, code: int, names: Sequence[str]) -> DataError:
    name = labels.names[code]
    places = np.flatnonzero(labels.codes == code)
    row = labels.row_names[labels.rows[places[0]]]
    times = f" and {len(places) - 1} more" if len(places) > 1 else ""
    hint = suggest(name, names) or "correct it, or list all names in data.label_names."
    return DataError(
        f"[data] split '{labels.split}', row {row} (counted from 0){times}: the label '{name}' is "
        f"not among the known ones ({show_names(names)}); {hint}"
    )


def show_names(names: Sequence[str]) -> str:
    """Write names for a message, at most ten."""
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def read_numbers(rows: Dataset, column: str, split: str) -> NDArray[np.float32]:
    """Return a column of numbers, or of equally long lists of them, as (rows, outputs).

    Numbers may be written as text. Raises DataError for a missing, unreadable or infinite number.
    """
    array, where = column_of(rows, column), f"[data] split '{split}'"
    numbers = row_numbers(rows)
    width = 1
    owner = np.arange(len(array))
    if is_list(array.type) and array.null_count == 0:
        lengths = np.asarray(pc.list_value_length(array), dtype=np.int64)
        width = int(lengths[0]) if len(lengths) else 1
        if (lengths != width).any():
            raise DataError(
                f"{where}: column '{column}' has from {lengths.min()} to {lengths.max()} numbers a "
                "row; every row needs as many."
            )
        owner, array = np.repeat(owner, width), array.flatten()
    missing = np.asarray(array.is_null())
    if not pa.types.is_null(array.type):
        values = _as_floats(array, numbers[owner], where, column)
        missing |= np.isnan(values)
    if missing.any():
        rows_ = np.unique(owner[missing])
        empty = np.empty(0, dtype=np.int64)
        _check_missing(Labels(split, (), empty, empty, numbers, missing_rows=rows_))
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise DataError(
            f"{where}, row {numbers[owner[infinite[0]]]} (counted from 0): the number in '{column}' "
            f"is infinite ({len(infinite)} such rows); a target must be finite."
        )
    return values.astype(np.float32).reshape(len(numbers), width)


def _as_floats(array: Any, numbers: Ids, where: str, column: str) -> NDArray[np.float64]:
    if is_text(array.type):
        return np.array(
            [
                _float(text, row, where, column)
                for text, row in zip(array.to_pylist(), numbers, strict=True)
            ]
        )
    try:
        return np.asarray(array.cast(pa.float64()).fill_null(math.nan), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where}: column '{column}' holds {array.type}, not numbers; a regression target is a "
            "number a row, or a list of numbers."
        ) from error


def _float(text: str | None, row: int, where: str, column: str) -> float:
    if text is None or not text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"{where}, row {row} (counted from 0): '{text}' in column '{column}' is not a number; "
            "regression needs numbers as targets."
        ) from None
