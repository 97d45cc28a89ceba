from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from sft_engine import DataError
from sft_engine.builtin.tasks import TextClassification, TextRegression
from sft_engine.columns import with_column
from sft_engine.drawing import amount_of, choose
from sft_engine.flow import Seeds
from sft_engine.preparation import (
    class_counts,
    fingerprint,
    prepare_given,
    prepare_splits,
)
from sft_engine.settings import DataSettings

SEEDS = Seeds(init=1, order=2, subset=3, noise=4)


def source(n: int = 100, classes: int = 2, **columns: Any) -> Dataset:
    content = {
        "text": [f"text {i}" for i in range(n)],
        "label": [f"c{i % classes}" for i in range(n)],
    }
    return Dataset.from_dict(content | columns)


def prepare(raw: dict[str, Dataset], task: Any = None, seeds: Seeds = SEEDS, **settings: Any):
    return prepare_splits(raw, DataSettings(**settings), task or TextClassification(), seeds)


def rows_of(split: Dataset) -> list[int]:
    return split["row"][:]


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "eval"])
def test_usual_names_of_the_validation_split(name):
    splits = prepare({"train": source(), name: source(10), "test": source(20)})
    assert {k: len(v) for k, v in splits.items()} == {"train": 100, "validation": 10, "test": 20}


def test_named_splits_and_one_that_is_left_out():
    raw = {"small": source(10), "matched": source(20), "mismatched": source(30), "test": source(5)}
    names = {"train": "small", "validation": "matched", "other": "mismatched", "test": ""}
    splits = prepare(raw, splits=names, test=0.2)
    assert list(splits) == ["train", "validation", "test", "other"]
    assert [len(split) for split in splits.values()] == [8, 20, 2, 30]


def test_other_splits_are_kept_only_if_they_are_named():
    assert list(prepare({"train": source(), "unsupervised": source()})) == [
        "train", "validation", "test",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "settings", "parts"),
    [
        ({"a": 1}, {}, ["no split 'train'", "found: a"]),
        ({"train": 1}, {"splits": {"test": "tets"}}, ["splits.test = 'tets'", "found: train"]),
        ({"train": 1}, {"columns": {"text": "txet"}}, ["columns.text = 'txet'", "`text`"]),
        ({"train": 1}, {"columns": {"text": "text", "label": "text"}}, ["for two roles"]),
    ],
)
def test_names_that_are_not_there(raw, settings, parts):
    with pytest.raises(DataError) as caught:
        prepare(dict.fromkeys(raw, source()), **settings)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_column_comes_with_the_likely_one():
    raw = Dataset.from_dict({"sentence": ["a"], "stars": [1]})
    with pytest.raises(
        DataError, match=r'no column \'text\' \(found: sentence, stars\).*"sentence"'
    ):
        prepare({"train": raw})
    with pytest.raises(DataError, match=r'no column \'label\'.*columns = \{label = "stars"\}'):
        prepare({"train": raw}, columns={"text": "sentence"})


def test_columns_become_roles_and_nothing_gets_lost():
    raw = source(10, text_2=["other"] * 10, row=["r"] * 10)
    splits = prepare(
        {"train": raw}, columns={"text": "text_2", "text_pair": "text"}, validation=0, test=0
    )
    train = splits["train"]
    assert set(train.column_names) == {"text", "text_pair", "label", "row", "source_row"}
    assert train["text"][:] == ["other"] * 10
    assert train["text_pair"][3] == "text 3"
    assert rows_of(train) == list(range(10))
    kept = prepare({"train": raw}, columns={"text": "text_2"}, validation=0, test=0)["train"]
    assert kept["source_text"][:] == raw["text"][:]


def test_columns_may_swap_their_names():
    raw = Dataset.from_dict({"label": ["t0", "t1"], "text": ["a", "b"]})
    swapped = prepare(
        {"train": raw}, columns={"text": "label", "label": "text"}, validation=0, test=0
    )["train"]
    assert swapped["text"][:] == ["t0", "t1"]
    assert swapped["label"][:] == [0, 1]


# --- gaps ----------------------------------------------------------------------------------------


def with_gaps() -> Dataset:
    raw = source(10)
    text, label = raw["text"][:], raw["label"][:]
    text[2], label[5], label[6] = None, None, ""
    return Dataset.from_dict({"text": text, "label": label})


def test_a_row_without_input_or_target_stops_the_run():
    rows = with_gaps()
    with pytest.raises(DataError, match=r"1 of 10 rows have no 'text' \(row 2"):
        prepare({"train": rows})
    filled = Dataset.from_dict({"text": ["x"] * 10, "label": rows["label"][:]})
    with pytest.raises(DataError, match=r"2 of 10 rows have no label \(row 5, 6"):
        prepare({"train": filled}, validation=0, test=0)


def test_or_is_left_out_with_a_warning(caplog):
    train = prepare({"train": with_gaps()}, on_error="skip", validation=0, test=0)["train"]
    assert rows_of(train) == [0, 1, 3, 4, 7, 8, 9]
    assert "3 of 10 rows left out" in caplog.text


def test_splits_without_rows():
    with pytest.raises(DataError, match="'test' has no rows"):
        prepare({"train": source(), "test": source().select([])})
    nothing = Dataset.from_dict({"text": [None], "label": ["a"]}, Features(
        {"text": Value("string"), "label": Value("string")}))  # fmt: skip
    with pytest.raises(DataError, match="none of 1 rows"):
        prepare({"train": nothing}, on_error="skip")


# --- held out ------------------------------------------------------------------------------------


def test_test_and_validation_are_drawn_once_each_and_stratified():
    splits = prepare({"train": source(200, classes=4)}, validation=0.1, test=40)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [140, 20, 40]
    assert sorted(row for split in splits.values() for row in rows_of(split)) == list(range(200))
    for split in splits.values():
        counts = class_counts(split, ["c0", "c1", "c2", "c3"])
        assert max(counts.values()) - min(counts.values()) == 0
        assert rows_of(split) == sorted(rows_of(split))


def test_the_draw_is_this_one_for_ever():
    """A study compares runs of different years: the test split must not drift."""
    splits = prepare({"train": source(40)}, validation=4, test=6)
    assert rows_of(splits["test"]) == [8, 13, 19, 26, 29, 38]
    assert rows_of(splits["validation"]) == [3, 6, 7, 36]


def test_the_draw_depends_on_the_split_seed_alone():
    first = prepare({"train": source()}, subset=20, resample="bootstrap")
    other = Seeds(init=9, order=9, subset=9, noise=9)
    second = prepare({"train": source()}, seeds=other)
    for name in ("validation", "test"):
        assert rows_of(first[name]) == rows_of(second[name])
    third = prepare({"train": source()}, split_seed=1)
    assert rows_of(third["test"]) != rows_of(second["test"])


def test_the_test_split_does_not_depend_on_the_validation_split():
    with_it, without = (prepare({"train": source()}, validation=v) for v in (0.3, 0))
    assert rows_of(with_it["test"]) == rows_of(without["test"])
    assert "validation" not in without


def test_only_missing_splits_are_drawn():
    splits = prepare({"train": source(), "test": source(30)})
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 90, "validation": 10, "test": 30,
    }  # fmt: skip


def test_every_class_keeps_a_training_row():
    raw = source(102, classes=2)
    label = ["a"] * 50 + ["b"] * 50 + ["rare", "rarer"]
    raw = with_column(raw, "label", label, Value("string"))
    splits = prepare({"train": raw}, test=0.5, validation=0.2)
    names = ["a", "b", "rare", "rarer"]
    assert min(class_counts(splits["train"], names).values()) == 1


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"test": 0.001}, r"\[data\] test = 0\.001 of 20 rows is no row"),
        ({"test": 200}, r"\[data\] test = 200: there are only 20"),
        ({"test": 20}, r"\[data\] test = 20 leaves none of 20 rows"),
        ({"test": 3}, r"\[data\] test = 3 holds out 3 rows, fewer than the 5 classes"),
        ({"test": 16}, r"without a training row"),
        ({"subset": 21, "validation": 0, "test": 0}, r"\[data\] subset = 21: there are only 20"),
    ],
)
def test_splits_that_are_too_small(settings, part):
    with pytest.raises(DataError, match=part):
        prepare({"train": source(20, classes=5)}, **settings)


def test_without_strata_small_draws_are_fine():
    assert len(prepare({"train": source(20, classes=5)}, test=1, stratify=False)["test"]) == 1
    numbers = Dataset.from_dict({"text": ["a"] * 20, "label": list(range(20))})
    splits = prepare({"train": numbers}, task=TextRegression(), test=1, validation=1)
    assert [len(split) for split in splits.values()] == [18, 1, 1]


@pytest.mark.parametrize(("amount", "count"), [(0.1, 10), (0.999, 100), (1, 1), (7.0, 7)])
def test_amounts_are_shares_or_numbers(amount, count):
    assert amount_of(amount, 100, "data.test") == count


@pytest.mark.parametrize("count", [7, 20, 33, 60])
def test_strata_are_drawn_in_proportion(count):
    strata = np.repeat([5, 1, 9], [60, 30, 10])
    drawn = choose(100, count, 3, strata)
    assert len(set(drawn)) == count
    exact = np.array([0.3, 0.6, 0.1]) * count
    found = np.unique(strata[drawn], return_counts=True)[1]
    assert np.abs(found - exact).max() < 1


def test_every_number_is_drawn_equally_often():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[choose(20, 6, seed, np.arange(20) % 2)] += 1
    # binomial: 2000 draws of probability 0.3 have a standard deviation of 20.5
    assert np.abs(counts - 600).max() < 5 * 20.5


# --- subset and resample -------------------------------------------------------------------------


def test_a_subset_depends_on_the_subset_seed_and_touches_training_alone():
    whole = prepare({"train": source()})
    half = prepare({"train": source()}, subset=0.5)
    assert (len(half["train"]), len(half["test"])) == (40, 10)
    assert class_counts(half["train"], ["c0", "c1"]) == {"c0": 20, "c1": 20}
    other = prepare({"train": source()}, subset=40, seeds=Seeds(1, 2, 99, 4))
    assert rows_of(other["train"]) != rows_of(half["train"])
    assert set(rows_of(half["train"])) < set(rows_of(whole["train"]))


def test_a_tiny_subset_has_every_class():
    label = ["a"] * 90 + ["b"] * 9 + ["c"]
    raw = source(100, label=label)
    train = prepare({"train": raw}, subset=3, validation=0, test=0)["train"]
    assert class_counts(train, "abc") == {"a": 1, "b": 1, "c": 1}


def test_bootstrap_draws_as_many_with_replacement():
    plain = prepare({"train": source(500)}, validation=0, test=0)["train"]
    train = prepare({"train": source(500)}, resample="bootstrap", validation=0, test=0)["train"]
    assert len(train) == 500
    distinct = len(set(rows_of(train)))
    # 1 - 1/e of them are expected, with a standard deviation of 7
    assert distinct == pytest.approx(316, abs=5 * 7)
    for row, label in zip(rows_of(train), train["label"][:], strict=True):
        assert plain["label"][row] == label


def test_balanced_repeats_the_smaller_classes_and_drops_nothing():
    label = ["a"] * 70 + ["b"] * 20 + ["c"] * 10
    raw = source(100, label=label)
    train = prepare({"train": raw}, resample="balanced", validation=0, test=0)["train"]
    assert class_counts(train, "abc") == {"a": 70, "b": 70, "c": 70}
    times = np.bincount(rows_of(train), minlength=100)
    assert set(times[:70]) == {1}
    assert set(times[70:90]) == {3, 4}
    assert set(times[90:]) == {7}
    numbers = Dataset.from_dict({"text": ["a"] * 20, "label": list(range(20))})
    with pytest.raises(DataError, match="needs one class a row"):
        prepare({"train": numbers}, task=TextRegression(), resample="balanced")


# --- other data, hashes, counts ------------------------------------------------------------------


def test_other_data_is_read_with_the_classes_of_training():
    task = TextClassification()
    settings = DataSettings(label_names=("c0", "c1", "c2"), columns={"text": "body"})
    raw = Dataset.from_dict({"body": ["a", "b"], "label": ["c2", "c0"]})
    splits = prepare_given({"mails": raw}, settings, task)
    assert splits["mails"]["label"][:] == [2, 0]
    assert task.head.names == ("c0", "c1", "c2")
    with pytest.raises(DataError, match=r"'mails', row 0 .*'c9' is not among"):
        prepare_given({"mails": raw.map(lambda _: {"label": "c9"})}, settings, task)
    unlabelled = prepare_given(
        {"mails": raw.remove_columns("label")}, settings, task, need_target=False
    )
    assert unlabelled["mails"].column_names == ["text", "row"]


def test_the_fingerprint_is_of_content_and_not_of_storage():
    raw = source(50, score=[i / 7 for i in range(50)], tags=[["a"] * (i % 3) for i in range(50)])
    same = concatenate_datasets([raw.select(range(20)), raw.select(range(20, 50))])
    taken = raw.select(list(range(49, -1, -1))).select(list(range(49, -1, -1)))
    large = raw.cast_column("text", Value("large_string"))
    for other in (same, taken, large, raw.flatten_indices()):
        assert fingerprint(other) == fingerprint(raw)
    changed = raw.map(lambda row: {"text": row["text"].replace("text 7", "text 8")})
    swapped = raw.select([1, 0, *range(2, 50)])
    renamed = raw.rename_column("score", "points")
    longer = raw.map(lambda row: {"tags": [*row["tags"], ""]})
    for other in (changed, swapped, renamed, longer, raw.select(range(49))):
        assert fingerprint(other) != fingerprint(raw)


def test_the_fingerprint_knows_where_a_text_ends_and_what_is_missing():
    texts = [["ab", "c"], ["a", "bc"], ["abc", None], ["abc", ""]]
    features = Features({"text": Value("string")})
    prints = {fingerprint(Dataset.from_dict({"text": t}, features)) for t in texts}
    assert len(prints) == 4


def test_the_fingerprint_is_the_same_in_every_process():
    code = (
        "from datasets import Dataset; from sft_engine.preparation import fingerprint;"
        "print(fingerprint(Dataset.from_dict({'text': ['a', 'é'], 'label': [1, 0]})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = fingerprint(Dataset.from_dict({"text": ["a", "é"], "label": [1, 0]}))
    assert done.stdout.strip() == here
    assert len(here) == 32


def test_class_counts_of_classes_and_of_labels():
    task = TextClassification(labels="multi")
    rows = Dataset.from_dict({"text": ["a"] * 3, "label": [["x"], ["x", "y"], []]})
    prepared = task.prepare({"train": rows}, ())["train"]
    assert class_counts(prepared, ("x", "y")) == {"x": 2, "y": 1}
    masked = TextClassification().prepare({"train": source(4, label=[0, 1, -100, 1])}, ())["train"]
    assert class_counts(masked, ("0", "1")) == {"0": 1, "1": 2}


def test_class_label_columns_are_stratified_by_class():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    raw = Dataset.from_dict({"text": ["a"] * 40, "label": [0] * 30 + [1] * 10}, features)
    splits = prepare({"train": raw}, test=8, validation=0)
    assert class_counts(splits["test"], ("x", "y")) == {"x": 6, "y": 2}


def test_a_selection_with_repeated_rows_gets_one_number_a_row():
    raw = source(10).select([0, 0, 1, 1, 2, 3])
    train = prepare({"train": raw}, validation=0, test=0)["train"]
    assert rows_of(train) == [0, 1, 2, 3, 4, 5]
    assert train["text"][:] == [f"text {i}" for i in (0, 0, 1, 1, 2, 3)]
