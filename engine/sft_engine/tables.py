"""Tables: several columns of numbers become one role of a task, such as `features`.

A task says by its attribute `tables` which roles those are. Which columns they are made of is settled
once, from the training data, and written into the recipe of the run folder: whoever evaluates or
predicts later finds the columns by name, whatever their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_engine.columns import column_of, is_list, is_text, with_column
from sft_engine.errors import DataError
from sft_engine.sentences import show_value

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

Columns = Mapping[str, str | list[str]]
"""Role to column, or to several columns of numbers."""

MOST = 0.5
"""Share of the values of a text column from which on it is a column of numbers with mistakes."""
_SHOWN = 4


def table_roles(task: Any) -> frozenset[str]:
    """Return the roles of a task that several columns of numbers make up."""
    return frozenset(getattr(task, "tables", ()))


def named_columns(rows: Dataset, columns: Columns, task: Any) -> dict[str, str | list[str]]:
    """Return `columns` with every table of the task as a list of column names.

    A table that `columns` does not name consists of all columns of numbers that have no other role. A
    column that holds lists of numbers is a table already, and keeps its place.

    Raises:
        DataError: there is no column of numbers, or a role that takes one column was given several.
    """
    named = dict(columns)
    tables = table_roles(task)
    for role, given in columns.items():
        if not isinstance(given, str) and role not in tables:
            raise DataError(
                f"[data] columns.{role} = {show_value(given)}: this role takes one column; name one."
            )
    taken = {task.target, *(name for name in columns.values() if isinstance(name, str))}
    for role in tables:
        given = named.get(role, role)
        if isinstance(given, str) and _holds_lists(rows, given):
            continue
        if isinstance(given, str):
            named[role] = [given] if role in columns else _numeric(rows, taken, role)
    return named


def _holds_lists(rows: Dataset, name: str) -> bool:
    return name in rows.column_names and is_list(rows.data.schema.field(name).type)


def _numeric(rows: Dataset, taken: set[str], role: str) -> list[str]:
    found = numeric_columns(rows, taken)
    if not found:
        listed = ", ".join(rows.column_names)
        raise DataError(
            f"[data] there is no column of numbers for '{role}' (found: {listed}); name them: "
            f'columns = {{{role} = ["...", "..."]}}.'
        )
    return found


def numeric_columns(rows: Dataset, leave_out: Sequence[str] | set[str] = ()) -> list[str]:
    """Return the columns that hold numbers: as such, as true and false, or mostly as text.

    Numbers with class names (`ClassLabel`) stand for something else, and do not count.
    """
    return [
        name
        for name in rows.column_names
        if name not in leave_out
        and not getattr(rows.features[name], "names", None)
        and _is_numeric(rows, name)
    ]


def _is_numeric(rows: Dataset, name: str) -> bool:
    kind = rows.data.schema.field(name).type
    if not is_text(kind):
        return bool(
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        )
    texts = [text for text in column_of(rows, name).to_pylist() if text and text.strip()]
    return sum(_is_number(text) for text in texts) > MOST * len(texts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def with_tables(
    rows: Dataset, columns: Columns, split: str, *, skip: bool = False
) -> tuple[Dataset, dict[str, str]]:
    """Make each role that is given as a list of columns one column of lists of numbers.

    Args:
        rows: A split of the source.
        columns: By role.
        split: Its name, for messages.
        skip: Leave a broken row without its table, instead of refusing it.

    Returns:
        The split with the new columns, and the roles that are still to be renamed.

    Raises:
        DataError: a value is missing, no number or infinite; row and column are named.
    """
    from datasets import List, Value

    for role, names in columns.items():
        if isinstance(names, str):
            continue
        _check_present(rows, names, role, split)
        parts = [_column(rows, name, split, skip=skip) for name in names]
        table = np.stack(parts, axis=1)
        whole: list[bool] = np.all(np.isfinite(table), axis=1).tolist()
        values = [row if good else None for row, good in zip(table, whole, strict=True)]
        if role in rows.column_names and role not in names:
            rows = rows.rename_column(role, f"source_{role}")
        rows = with_column(rows, role, values, List(Value("float64")))
    return rows, {role: name for role, name in columns.items() if isinstance(name, str)}


def _check_present(rows: Dataset, names: Sequence[str], role: str, split: str) -> None:
    missing = [name for name in names if name not in rows.column_names]
    if missing or not names or len(set(names)) < len(names):
        what = f"the split '{split}' has no column '{missing[0]}'" if missing else "name each once"
        listed = ", ".join(rows.column_names)
        raise DataError(
            f"[data] columns.{role} = {show_value(names)}: {what} (found: {listed}); correct the list."
        )


def _column(rows: Dataset, name: str, split: str, *, skip: bool) -> NDArray[np.float64]:
    """Return a column as numbers; what is none is NaN, or an error."""
    array = column_of(rows, name)
    if is_text(array.type):
        values = np.array([_parsed(text) for text in array.to_pylist()], dtype=np.float64)
    else:
        try:
            values = np.asarray(array.cast(pa.float64()).fill_null(math.nan), dtype=np.float64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"[data] split '{split}': column '{name}' holds {array.type}, not numbers; leave it "
                "out of data.columns, or turn it into numbers."
            ) from error
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken) and not skip:
        first = int(broken[0])
        raise DataError(
            f"[data] split '{split}', row {first} (counted from 0): column '{name}' holds "
            f"{_found(array[first].as_py())}, not a finite number ({len(broken)} such rows); correct "
            'it, leave the column out of data.columns, or set on_error = "skip" in [data].'
        )
    return values


def _parsed(text: str | None) -> float:
    return float(text) if text is not None and _is_number(text) else math.nan


def _found(value: Any) -> str:
    empty = value is None or (isinstance(value, str) and not value.strip())
    return "nothing" if empty else repr(value)


def numbers_of(row: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """Return the numbers of a row to predict in the order of these columns.

    Raises:
        DataError: a column is missing, or its value is no finite number.
    """
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise DataError(
            f"a row to predict has no {missing[0]!r} (found: {', '.join(row)}); it needs the columns "
            f"{', '.join(names)}."
        )
    return [_number_of(row[name], name) for name in names]


def _number_of(value: Any, name: str) -> float:
    number = _parsed(value) if isinstance(value, str) else value
    try:
        number = float(number)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"a row to predict has {show_value(value)} in {name!r}; a finite number is needed."
        )
    return number


def check_accepted(
    task: Any,
    backbone: Any,
    names: Callable[[str], str],
    columns: Columns,
    rows: Dataset,
) -> None:
    """Refuse a backbone that does not take what the task gives, before anything is encoded.

    A backbone declares by its attribute `accepts` (a frozenset of input roles) what it takes; one
    without is not judged.

    Args:
        task: The task.
        backbone: The backbone.
        names: Gives the name of a kind's component in the recipe.
        columns: As `named_columns` returns them.
        rows: Of the training split.

    Raises:
        DataError: naming both, and what to use instead.
    """
    needed = [role for role, required in task.inputs.items() if required]
    accepts = getattr(backbone, "accepts", None)
    if accepts is not None and not accepts.issuperset(needed):
        role = next(role for role in needed if role not in accepts)
        raise DataError(
            f'[backbone] "{names("backbone")}" takes {_words(sorted(accepts))}, the data has '
            f"{_described(role, columns)}; {_ADVICE.get(role, 'use a backbone that takes it')}."
        )
    absent = [role for role in needed if columns.get(role, role) not in rows.column_names]
    if "image" in absent and (found := numeric_columns(rows, {task.target})):
        raise DataError(
            f'[task] "{names("task")}" needs images, the data has {_described("", {"": found})}; '
            "use task `tabular-classification` and backbone `mlp`, or name the column with images: "
            'columns = {image = "..."}.'
        )


_WORDS = {
    "image": "images",
    "text": "texts",
    "features": "a table of numbers",
    "audio": "recordings",
}
_ADVICE = {
    "features": "use backbone `mlp`",
    "text": "use backbone `transformers`",
    "image": "use backbone `timm` or `torchvision`",
    "audio": "use backbone `transformers-audio`",
}


def _words(roles: Sequence[str]) -> str:
    known = list(dict.fromkeys(_WORDS[role] for role in roles if role in _WORDS))
    return " and ".join(known) or ", ".join(roles)


def _described(role: str, columns: Columns) -> str:
    names = columns.get(role, role)
    if isinstance(names, str):
        return _WORDS.get(role, f"'{role}'")
    more = ", ..." if len(names) > _SHOWN else ""
    one = "column" if len(names) == 1 else "columns"
    return f"a table of {len(names)} {one} ({', '.join(names[:_SHOWN])}{more})"
