"""Several columns become one role: which ones, in which order, and what is wrong with a value."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sft_engine import DataError
from sft_engine.builtin.tabular import TabularClassification, TabularRegression, check_features
from sft_engine.preparation import prepare_given, prepare_splits, settle
from sft_engine.settings import DataSettings
from sft_engine.tables import check_accepted, named_columns, numbers_of, numeric_columns

SEEDS = SimpleNamespace(subset=0)
NO_DRAW = {"validation": 0, "test": 0}
TEXTS = {"a": ["1", "2", "3"], "b": ["0.5", "-1e3", " 7 "], "word": ["x", "y", "z"]}


def rows_of(**columns) -> Dataset:
    return Dataset.from_dict({**columns, "label": ["u", "v", "u"]})


def prepared(rows: Dataset, **settings) -> Dataset:
    data = DataSettings(**(NO_DRAW | settings))
    return prepare_splits({"train": rows}, data, TabularClassification(), SEEDS)["train"]


def test_default_is_every_column_of_numbers_but_the_target():
    rows = Dataset.from_dict(
        {
            "n": [1, 2],
            "x": [0.5, None],
            "flag": [True, False],
            "text": ["1", ""],
            "word": ["1", "one"],
            "kind": [0, 1],
            "lists": [[1.0], [2.0]],
            "label": [0, 1],
        },
        features=Features(
            {
                "n": Value("int64"),
                "x": Value("float32"),
                "flag": Value("bool"),
                "text": Value("string"),
                "word": Value("string"),
                "kind": ClassLabel(names=["p", "q"]),
                "lists": [Value("float32")],
                "label": Value("int64"),
            }
        ),
    )
    assert numeric_columns(rows, {"label"}) == ["n", "x", "flag", "text"]
    named = named_columns(rows, {}, TabularClassification())
    assert named == {"features": ["n", "x", "flag", "text"]}
    other = named_columns(rows, {"label": "n"}, TabularClassification())
    assert other["features"] == ["x", "flag", "text"]


def test_columns_are_joined_in_the_order_that_is_asked_for():
    rows = rows_of(**TEXTS)
    assert prepared(rows)["features"][:] == [[1, 0.5], [2, -1000], [3, 7]]
    listed = prepared(rows, columns={"features": ["b", "a"]})
    assert listed["features"][:] == [[0.5, 1], [-1000, 2], [7, 3]]
    assert prepared(rows, columns={"features": "b"})["features"][:] == [[0.5], [-1000], [7]]


def test_numbers_keep_their_precision():
    big = [1_700_000_000, 1_700_000_001, 1_700_000_002]
    assert prepared(rows_of(time=big))["features"][:] == [[float(value)] for value in big]


def test_a_column_of_lists_is_a_table_already():
    rows = rows_of(features=[[1.0, 2], [3, 4], [5, 6]], other=[1, 2, 3])
    assert prepared(rows)["features"][:] == [[1, 2], [3, 4], [5, 6]]
    moved = rows.rename_column("features", "vector")
    assert prepared(moved, columns={"features": "vector"})["features"][:] == [
        [1, 2],
        [3, 4],
        [5, 6],
    ]


def test_a_selection_of_rows_is_joined_alike():
    rows = rows_of(**TEXTS).select([2, 1])
    assert prepared(rows)["features"][:] == [[3, 7], [2, -1000]]


@pytest.mark.parametrize(
    ("value", "found"),
    [("n/a", "'n/a'"), ("", "nothing"), (None, "nothing"), ("inf", "'inf'"), ("nan", "'nan'")],
)
def test_a_value_that_is_no_number_is_named_with_row_and_column(value, found):
    rows = rows_of(a=["1", value, "3"], b=[1, 2, 3])
    with pytest.raises(DataError) as caught:
        prepared(rows)
    assert str(caught.value) == (
        f"[data] split 'train', row 1 (counted from 0): column 'a' holds {found}, not a finite number "
        '(1 such rows); correct it, leave the column out of data.columns, or set on_error = "skip" in '
        "[data]."
    )


def test_broken_rows_may_be_skipped(caplog):
    rows = Dataset.from_dict({"a": ["1", "?", "3", "4"], "label": ["u", "v", "u", "v"]})
    left = prepared(rows, on_error="skip")
    assert left["features"][:] == [[1], [3], [4]]
    assert left["row"][:] == [0, 2, 3]
    assert "1 of 4 rows left out" in caplog.text


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"features": ["a", "c"]},
            "the split 'train' has no column 'c' (found: a, b, word, label)",
        ),
        ({"features": ["a", "a"]}, "name each once"),
        ({"features": []}, "name each once"),
        ({"features": ["a", "word"]}, "row 0 (counted from 0): column 'word' holds 'x'"),
        ({"label": ["a", "b"]}, 'columns.label = ["a", "b"]: this role takes one column'),
    ],
)
def test_wrong_columns(columns, says):
    with pytest.raises(DataError) as caught:
        prepared(rows_of(**TEXTS), columns=columns)
    assert says in str(caught.value)


def test_no_column_of_numbers():
    with pytest.raises(
        DataError, match=r"no column of numbers for 'features' \(found: word, label"
    ):
        prepared(rows_of(word=["x", "y", "z"]))


def test_a_column_of_dates_is_no_column_of_numbers():
    import datetime as dt

    days = [dt.date(2026, 1, day) for day in (1, 2, 3)]
    with pytest.raises(DataError, match=r"column 'day' holds date32.*, not numbers"):
        prepared(rows_of(day=days), columns={"features": ["day"]})


def test_settled_columns_find_their_place_in_other_data():
    rows = rows_of(**TEXTS)
    task = TabularClassification()
    names = {"backbone": "mlp", "task": "tabular-classification"}.__getitem__
    backbone = SimpleNamespace(accepts=frozenset({"features"}))
    data = settle({"train": rows}, DataSettings(label_names=("u", "v")), task, backbone, names)
    assert data.columns == {"features": ["a", "b"]}
    other = Dataset.from_dict({"extra": [9], "b": [1.0], "a": [2.0], "label": ["v"]})
    given = prepare_given({"test": other}, data, task)["test"]
    assert given["features"][:] == [[2, 1]]


def test_rows_to_predict():
    assert numbers_of({"b": "2", "a": 1, "c": "x"}, ["a", "b"]) == [1.0, 2.0]
    with pytest.raises(DataError, match=r"has no 'b' \(found: a\); it needs the columns a, b"):
        numbers_of({"a": 1}, ["a", "b"])
    with pytest.raises(DataError, match="has \"x\" in 'a'; a finite number is needed"):
        numbers_of({"a": "x"}, ["a"])
    with pytest.raises(DataError, match="has NaN in 'a'"):
        numbers_of({"a": float("nan")}, ["a"])


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (["x", "y", "z"], "holds string, not lists of numbers"),
        ([[1.0], [1.0, 2.0], [3.0]], "rows have from 1 to 2 features"),
        ([[1.0], [None], [3.0]], "a number that is missing or infinite"),
    ],
)
def test_lists_of_features_are_checked(features, says):
    with pytest.raises(DataError, match=says):
        check_features({"train": rows_of(features=features)})


def test_splits_of_different_widths():
    one, two = (rows_of(features=np.zeros((3, width)).tolist()) for width in (1, 2))
    with pytest.raises(DataError, match=r"different numbers of features \(train 1, test 2\)"):
        check_features({"train": one, "test": two})


def test_regression_reads_the_same_table():
    rows = Dataset.from_dict({"a": ["1", "2"], "price": ["3.5", "4"]})
    data = DataSettings(columns={"label": "price"}, **NO_DRAW)
    train = prepare_splits({"train": rows}, data, TabularRegression(), SEEDS)["train"]
    assert train["features"][:] == [[1], [2]]
    assert train["label"][:] == [[3.5], [4]]


# --- what a backbone takes -----------------------------------------------------------------------

NAMES = {"backbone": "timm", "task": "some-task"}.__getitem__


def refusal(task, backbone, rows) -> str:
    columns = named_columns(rows, {}, task)
    with pytest.raises(DataError) as caught:
        check_accepted(task, backbone, NAMES, columns, rows)
    return str(caught.value)


def test_a_table_for_a_backbone_of_images_is_refused():
    backbone = SimpleNamespace(accepts=frozenset({"image"}))
    rows = rows_of(**{name: [1.0, 2, 3] for name in "abcde"})
    assert refusal(TabularClassification(), backbone, rows) == (
        '[backbone] "timm" takes images, the data has a table of 5 columns (a, b, c, d, ...); use '
        "backbone `mlp`."
    )


def test_texts_for_a_table_backbone_are_refused():
    task = SimpleNamespace(inputs={"text": True, "text_pair": False}, target="label")
    backbone = SimpleNamespace(accepts=frozenset({"features"}))
    assert refusal(task, backbone, rows_of(text=["x", "y", "z"])) == (
        '[backbone] "timm" takes a table of numbers, the data has texts; use backbone `transformers`.'
    )


def test_a_table_for_a_task_of_images_is_refused():
    task = SimpleNamespace(inputs={"image": True}, target="label")
    backbone = SimpleNamespace(accepts=frozenset({"image"}))
    says = refusal(task, backbone, rows_of(a=[1, 2, 3]))
    assert says.startswith(
        '[task] "some-task" needs images, the data has a table of 1 column (a); use'
    )


def test_a_backbone_that_says_nothing_is_not_judged():
    rows = rows_of(a=[1, 2, 3])
    task = TabularClassification()
    check_accepted(task, SimpleNamespace(), NAMES, named_columns(rows, {}, task), rows)
