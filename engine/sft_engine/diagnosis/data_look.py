"""A look at the splits for what would make evaluation worthless: leaks, inputs that are all the same.

Everything is a few passes over Arrow columns, or over a part of the rows where words are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sft_engine.columns import DIGESTS, column_of, is_list, is_text, row_numbers

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine.components import Task

EDGE = 48
"""Letters and digits at the begin or end of a text that two texts do not have in common by chance."""
BOILERPLATE = 2
"""Training rows that may share a begin or an end; if there are more, it is how such texts begin."""
READ = 2000
"""Rows of which words are counted."""
OFTEN, SELDOM = 0.95, 0.02
"""A word tells a class if so many of its rows have it, and so few of the others."""
NAMED = 5
"""Rows and words that are named."""

Keys = NDArray[np.int64]


def look(splits: Mapping[str, Dataset], task: Task) -> dict[str, Any]:
    """Look at prepared splits.

    Returns:
        `head`, `classes`; `sizes` by split; `majority`: share of the largest class in training;
        `chance_loss`: plain loss of the best constant answer; `distinct`: share of training inputs that
        differ; `overlap` by held-out split: rows whose input is in training too; `tells`: words or columns
        that give the class away.
    """
    train = splits["train"]
    return {
        "head": task.head.kind,
        "classes": task.head.outputs,
        "sizes": {name: len(rows) for name, rows in splits.items()},
        **_targets(train, task),
        **_inputs(splits, task),
        "tells": _tells(train, task),
    }


# --- targets --------------------------------------------------------------------------------------


def _targets(train: Dataset, task: Task) -> dict[str, float]:
    label = _labels(train)
    if label is None or not len(label):
        return {}
    if task.head.kind == "classification" and label.ndim == 1:
        shares = np.bincount(label.astype(np.int64)) / len(label)
        shares = shares[shares > 0]
        return {
            "majority": float(shares.max()),
            "chance_loss": float(-(shares * np.log(shares)).sum()),
        }
    if task.head.kind == "multi-label" and label.ndim > 1:
        on = np.clip(label.mean(axis=0), 1e-12, 1 - 1e-12)
        entropy = -(on * np.log(on) + (1 - on) * np.log(1 - on))
        return {"chance_loss": float(entropy.mean())}
    objective = getattr(task, "objective", "squared")
    if task.head.kind == "regression" and objective == "squared":
        return {"chance_loss": float(label.reshape(len(label), -1).var(axis=0).mean())}
    return {}


def _labels(rows: Dataset) -> NDArray[Any] | None:
    """Return the targets that are not masked: (n,), or (n, outputs)."""
    if "label" not in rows.column_names:
        return None
    array = column_of(rows, "label")
    if is_list(array.type):
        return np.asarray(array.flatten(), dtype=np.float64).reshape(len(rows), -1)
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return None
    values = np.asarray(array.drop_null(), dtype=np.float64)
    return values[values >= 0] if pa.types.is_integer(array.type) else values


# --- inputs ---------------------------------------------------------------------------------------


def _inputs(splits: Mapping[str, Dataset], task: Task) -> dict[str, Any]:
    """Compare inputs within the training split and with it."""
    exact, near = _keys(splits, task), _near_keys(splits, task)
    if not exact:
        return {}
    train = exact["train"]
    numbers = np.unique(row_numbers(splits["train"]))  # resampling repeats rows
    found: dict[str, Any] = {
        "distinct": len(np.unique(train)) / max(len(numbers), 1),
        "overlap": {},
    }
    for name in ("validation", "test"):
        if name not in exact or not len(exact[name]):
            continue
        same = np.isin(exact[name], train)
        close = same.copy()
        for keys in near:
            close |= np.isin(keys[name], _rare(keys["train"]))
        rows = row_numbers(splits[name])[np.flatnonzero(close)[:NAMED]]
        found["overlap"][name] = {
            "exact": int(same.sum()),
            "near": int((close & ~same).sum()),
            "rows": [int(row) for row in rows],
        }
    return found


def _keys(splits: Mapping[str, Dataset], task: Task) -> dict[str, Keys]:
    """Return a number for each row, equal where all inputs are: letters and digits, numbers, files."""
    columns = {name: _comparable(rows, task) for name, rows in splits.items()}
    if any(each is None for each in columns.values()):
        return {}
    return _numbered({name: each for name, each in columns.items() if each is not None})


def _comparable(rows: Dataset, task: Task) -> Any:
    parts = [_text_of(rows, role) for role in task.inputs]
    parts = [each for each in parts if each is not None]
    if not parts:
        return None
    letters = [_letters(each) for each in parts]
    return pc.binary_join_element_wise(*letters, pa.scalar(" ", pa.large_string()))


def _text_of(rows: Dataset, role: str) -> Any:
    """Return an input as a column of text: itself, the hash of a file, or numbers written out."""
    role = DIGESTS.get(role, role)
    if role not in rows.column_names:
        return None
    array = column_of(rows, role)
    if is_text(array.type):
        return array.fill_null("").cast(pa.large_string())
    if is_list(array.type):
        written = [" ".join(f"{x:.6g}" for x in row) for row in array.to_pylist()]
        return pa.array(written, pa.large_string())
    return None


def _letters(text: Any) -> Any:
    """Leave out case, blanks and punctuation; a text of nothing else stays as it is."""
    kept = pc.replace_substring_regex(pc.utf8_lower(text), r"[^\p{L}\p{N}]+", "")
    return pc.if_else(pc.equal(kept, ""), text, kept)


def _near_keys(splits: Mapping[str, Dataset], task: Task) -> list[dict[str, Keys]]:
    """Return keys by which texts are nearly the same: by their begin and, apart, by their end.

    A text that is shorter than `EDGE` has the key -1.
    """
    role = next(iter(task.inputs), "")
    texts = {name: _long_text(rows, role) for name, rows in splits.items()}
    if not all(text is not None for text in texts.values()) or role in DIGESTS:
        return []
    found = []
    for start, stop in ((0, EDGE), (-EDGE, None)):
        cut = {}
        for name, text in texts.items():
            # Four times as many characters hold enough letters; the rest need not be read.
            rough = pc.utf8_slice_codeunits(text, 4 * start, stop and 4 * stop)
            edge = pc.utf8_slice_codeunits(_letters(rough), start, stop)
            cut[name] = pc.if_else(pc.less(pc.utf8_length(edge), EDGE), None, edge)
        found.append(_numbered(cut))
    return found


def _rare(keys: Keys) -> Keys:
    """Return the keys of few rows: how a form letter begins says nothing."""
    found, counts = np.unique(keys[keys >= 0], return_counts=True)
    return np.asarray(found[counts <= BOILERPLATE])


def _long_text(rows: Dataset, role: str) -> Any:
    if role not in rows.column_names:
        return None
    array = column_of(rows, role)
    return array.fill_null("").cast(pa.large_string()) if is_text(array.type) else None


def _numbered(columns: Mapping[str, Any]) -> dict[str, Keys]:
    """Return equal numbers for equal texts of all splits; -1 for null."""
    joined = pa.chunked_array(list(columns.values())).combine_chunks().dictionary_encode()
    codes = np.asarray(joined.indices.fill_null(-1), dtype=np.int64)
    bounds = np.cumsum([len(each) for each in columns.values()])[:-1]
    return dict(zip(columns, np.split(codes, bounds), strict=True))


# --- what gives the label away --------------------------------------------------------------------


def _tells(train: Dataset, task: Task) -> list[dict[str, Any]]:
    """Return words, or columns of a table, that all but equal the label."""
    if task.head.kind != "classification" or "label" not in train.column_names:
        return []
    stride = max(1, math.ceil(len(train) / READ))
    some = train.select(range(0, len(train), stride)) if stride > 1 else train
    label = np.asarray(column_of(some, "label").fill_null(-1), dtype=np.int64)
    found: list[dict[str, Any]] = []
    for role in task.inputs:
        text = _long_text(some, role) if role not in DIGESTS else None
        if text is not None:
            found += _telling_words(text, label, task.head.names)
        elif role in some.column_names and is_list(column_of(some, role).type):
            found += _telling_columns(np.asarray(some[role], dtype=np.float64), label)
    return found[:NAMED]


def _telling_words(text: Any, label: Keys, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return words that nearly all rows of one class have and hardly any other."""
    words = [set(each.split()) for each in pc.utf8_lower(text).to_pylist()]
    whole: Counter[str] = Counter()
    own = {each: Counter[str]() for each in np.unique(label).tolist() if each >= 0}
    for each, kept in zip(label.tolist(), words, strict=True):
        whole.update(kept)
        if each >= 0:
            own[each].update(kept)
    sizes = np.bincount(label[label >= 0], minlength=len(names))
    found = []
    for each, counts in own.items():
        rest = max(int(sizes.sum() - sizes[each]), 1)
        # One row's own words occur in all rows of a class of one.
        for word, count in counts.items() if sizes[each] >= NAMED else ():
            if count >= OFTEN * sizes[each] and whole[word] - count <= SELDOM * rest:
                share = count / int(sizes[each])
                found.append({"word": word, "class": int(each), "share": round(share, 4)})
    return found


def _telling_columns(table: NDArray[np.float64], label: Keys) -> list[dict[str, Any]]:
    """Return columns that have one value for each class, and another one for each."""
    found: list[dict[str, Any]] = []
    for index, column in enumerate(table.T):
        pairs = len({*zip(column.tolist(), label.tolist(), strict=True)})
        values, classes = len(np.unique(column)), len(np.unique(label))
        if classes > 1 and pairs == values == classes:
            found.append({"column": index})
    return found
