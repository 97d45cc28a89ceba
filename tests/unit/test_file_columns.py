"""What images and recordings have in common: files of a kind of their own show it."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset, Features, Value

from sft_engine import DataError
from sft_engine.file_columns import (
    NAMED,
    FileError,
    holds_paths,
    path_of,
    portions,
    predicting,
    read,
    whole_rows,
    with_absolute_paths,
    with_facts,
)


class LeafError(FileError):
    noun = "a leaf"
    plural = "leaves"


def rows_of(*values, **more):
    return Dataset.from_dict({"leaf": list(values), **more})


def test_bytes_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.leaf"
    path.write_bytes(b"green")
    values = (path, str(path), {"path": str(path), "bytes": None}, b"green", bytearray(b"green"))
    assert [read(value, LeafError) for value in values] == [b"green"] * 5
    assert [path_of(value) for value in values] == [str(path)] * 3 + [""] * 2


@pytest.mark.parametrize(
    ("value", "where", "says"),
    [
        (None, "row 3", "row 3: found nothing where a path or the bytes of a leaf belong"),
        (7, "", "found int where a path or the bytes of a leaf belong"),
        ("gone.leaf", "", "gone.leaf: there is no such file"),
        ("gone.leaf", "row 1", "row 1: there is no such file"),
        (".", "", ".: it cannot be read (is a directory)"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_its_kind(value, where, says):
    with pytest.raises(LeafError) as raised:
        read(value, LeafError, where)
    assert str(raised.value) == says
    assert isinstance(raised.value, DataError)
    assert says.endswith(raised.value.reason)


def test_paths_are_made_absolute_and_bytes_left_alone(tmp_path):
    rows = rows_of("a", None, "/b", row=[0, 1, 2])
    assert holds_paths(rows, "leaf")
    assert with_absolute_paths(rows, "leaf", tmp_path)["leaf"][:] == [f"{tmp_path}/a", None, "/b"]
    feature = {"bytes": Value("binary"), "path": Value("string")}
    inside = [{"bytes": b"x", "path": "b"}]
    outside = [*inside, {"bytes": None, "path": "a"}, None]
    for values in (inside, outside):
        features = Features({"leaf": feature})
        rows = Dataset.from_dict({"leaf": values}, features=features)
        rows = rows.add_column("row", list(range(len(values))))
        assert holds_paths(rows, "leaf")
        found = with_absolute_paths(rows, "leaf", tmp_path)["leaf"][:]
        assert found[0] == values[0]
    assert found[1] == {"bytes": None, "path": f"{tmp_path}/a"}
    assert not holds_paths(rows_of(b"x"), "leaf")
    assert not holds_paths(rows_of({"file": "a"}), "leaf")


def test_a_column_is_read_in_portions(monkeypatch):
    monkeypatch.setattr("sft_engine.file_columns._PORTION", 2)
    rows = rows_of(*"abcde", row=[0, 1, 2, 3, 4]).select([4, 3, 2, 1, 0])
    assert list(portions(rows, "leaf")) == [["e", "d"], ["c", "b"], ["a"]]
    assert list(portions(rows.select([]), "leaf")) == []


def test_facts_are_columns():
    rows = with_facts(
        rows_of("a", "b"), {"size": ([1, 2], "int32"), "hash": (["x", "y"], "string")}
    )
    assert (rows["size"][:], rows["hash"][:]) == ([1, 2], ["x", "y"])
    assert rows.features["size"].dtype == "int32"


LOOKED = [("a", ""), ("b", "withered"), ("", "eaten"), ("d", "")]


def test_broken_files_are_named_with_the_row_of_the_source():
    rows = rows_of(*"abcd", row=[4, 5, 6, 7])
    with pytest.raises(DataError) as raised:
        whole_rows(rows, "train", LeafError, LOOKED, skip=False)
    assert str(raised.value) == (
        "[data] split 'train': 2 of 4 leaves cannot be used: 'b' (row 5): withered; row 6: eaten. Mend "
        'or remove them, or set on_error = "skip" in [data] to leave them out.'
    )


def test_broken_files_are_left_out_with_a_warning_for_each(caplog):
    with caplog.at_level(logging.WARNING, "sft_engine"):
        found = whole_rows(rows_of(*"abcd"), "train", LeafError, LOOKED, skip=True)
    assert found["leaf"][:] == ["a", "d"]
    assert caplog.messages == [
        "[data] split 'train': 'b' (row 1): withered; left out",
        "[data] split 'train': row 2: eaten; left out",
    ]


def test_where_all_are_whole_the_split_is_as_it_was():
    rows = rows_of("a", "b")
    assert whole_rows(rows, "train", LeafError, [("a", ""), ("b", "")], skip=False) is rows


def test_where_none_is_left_it_stops():
    with pytest.raises(DataError, match=r"none of 1 leaves can be used; row 0: eaten\."):
        whole_rows(rows_of("a"), "train", LeafError, [("", "eaten")], skip=True)


def test_a_sentence_names_so_many_and_counts_the_rest():
    looked = [("", "eaten")] * (NAMED + 3)
    with pytest.raises(DataError, match=r"row 19: eaten; and 3 more\."):
        whole_rows(rows_of(*"a" * len(looked)), "train", LeafError, looked, skip=False)


def decode(value, where):
    if value == "bad":
        raise LeafError("withered", where)
    return value.upper()


def records(rows):
    assert rows  # never called for nothing
    return [{"prediction": row["leaf"]} for row in rows]


def test_predictions_of_whole_files():
    predict = predicting(records, "leaf", decode, skip=False)
    assert predict([{"leaf": "a"}, {"leaf": "b"}]) == [{"prediction": "A"}, {"prediction": "B"}]
    with pytest.raises(LeafError, match="bad: withered"):
        predict([{"leaf": "c"}, {"leaf": "bad"}])


def test_a_file_without_a_path_is_called_by_its_row():
    seen = []
    predict = predicting(
        lambda rows: seen.extend(row["leaf"] for row in rows) or [{}] * len(rows),
        "leaf",
        lambda _, where: where,
        skip=False,
    )
    predict([{"leaf": b"x"}, {"leaf": "a"}])
    predict([{"leaf": b"y"}])
    assert seen == ["row 0", "a", "row 2"]


def test_broken_files_get_a_record_that_says_why():
    predict = predicting(records, "leaf", decode, skip=True)
    assert predict([{"leaf": "bad"}, {"leaf": "a"}]) == [
        {"prediction": None, "error": "withered"},
        {"prediction": "A", "error": None},
    ]
    assert predict([{"leaf": "bad"}]) == [{"prediction": None, "error": "withered"}]
