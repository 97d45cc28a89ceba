from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Value

from sft_engine.builtin.tasks import TextClassification, TextRegression
from sft_engine.columns import with_column
from sft_engine.preflight import preflight


class Encoded:
    """Encoded examples that know what happened to them."""

    def __init__(self, **known: Any) -> None:
        vars(self).update(known)


def look(task: Any = None, encoded: Any = None, **splits: dict[str, list[Any]]) -> list[str]:
    task = task or TextClassification()
    raw = {name: Dataset.from_dict(columns) for name, columns in splits.items()}
    findings = preflight(task.prepare(raw, ()), task, encoded)
    assert all(f.message.count("\n") == 0 and f.message.endswith(".") for f in findings)
    return [f"{f.level}: {f.message}" for f in findings]


def texts(n: int, word: str = "text") -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def rows(n: int, word: str = "text", label: list[Any] | None = None) -> dict[str, list[Any]]:
    return {"text": texts(n, word), "label": label or [i % 2 for i in range(n)]}


def only(messages: list[str]) -> str:
    assert len(messages) == 1, messages
    return messages[0]


def test_good_data_gives_no_finding():
    assert look(train=rows(40), test=rows(10, "other")) == []


def test_masked_targets_stop_the_run_if_there_are_no_others():
    task = TextClassification()
    task.prepare({}, ("a", "b"))
    raw = Dataset.from_dict({"text": ["x", "y"], "label": [-100, -100]})
    findings = preflight({"train": task.prepare({"train": raw}, ("a", "b"))["train"]}, task)
    assert findings[0].level == "stop"
    assert "all 2 targets of the split 'train' are masked or absent" in findings[0].message


def test_absent_targets_stop_the_run():
    task = TextClassification()
    task.prepare({}, ("a", "b"))
    findings = preflight({"train": Dataset.from_dict({"text": ["x", "y"]})}, task)
    assert [f.level for f in findings] == ["stop"]


def test_some_masked_targets_are_a_warning():
    message = only(look(train=rows(5, label=[0, 1, -100, 0, 1])))
    assert "warn: 1 of 5 (20.0%) rows of the split 'train' have no target" in message


def test_targets_that_encoding_masked_are_counted_too():
    encoded = {"train": Encoded(supervised=np.zeros(10))}
    assert look(encoded=encoded, train=rows(10))[0].startswith("stop: all 10 targets")


def test_empty_inputs_are_counted_and_the_first_rows_named():
    data = rows(20)
    data["text"][3], data["text"][7] = "", " \t\u00a0"
    messages = look(train=data)
    assert (
        "2 of 20 (10.0%) rows of the split 'train' have an empty 'text' (rows 3, 7" in messages[0]
    )


def test_what_encoding_cut_off_and_did_not_know():
    encoded = {"train": Encoded(truncated=np.arange(10) < 3, unknown_share=0.25)}
    cut, unknown = look(encoded=encoded, train=rows(10))
    assert "3 of 10 (30.0%) inputs of the split 'train' are longer" in cut
    assert "25.0% of the tokens of the split 'train' are unknown" in unknown
    assert look(encoded={"train": Encoded(unknown_share=0.001)}, train=rows(10)) == []


def test_rare_and_absent_classes():
    label = ["a"] * 10 + ["b"] * 9 + ["c"]
    single, absent = look(train=rows(20, label=label), test=rows(20, "x", ["a", "b"] * 10))
    assert "1 of 3 classes have one training row ('c')" in single
    assert "the split 'test' has no example of 1 of 3 classes ('c')" in absent


def test_a_named_class_without_training_rows():
    task = TextClassification()
    raw = {"train": Dataset.from_dict(rows(10, label=["a", "b"] * 5))}
    findings = preflight(task.prepare(raw, ("a", "b", "z")), task)
    assert "1 of 3 classes have no training row ('z')" in findings[0].message


def test_imbalance():
    message = only(look(train=rows(110, label=["a"] * 105 + ["b"] * 5)))
    assert "largest class 'a' has 105 training rows, the smallest 'b' 5 (21 to 1)" in message


def test_duplicates_within_training():
    data = rows(20)
    data["text"][1] = "  TEXT \n 0"
    data["text"][4] = "Text 2"
    message = only(look(train=data))
    assert (
        "2 of 20 (10.0%) training rows repeat the input of another one, 1 of them with" in message
    )


def test_duplicates_across_splits():
    other = rows(10, "other")
    other["text"][0], other["text"][1], other["text"][2] = "text 4", "text 5", "TEXT  6"
    other["label"][2] = 1
    message = only(look(train=rows(20), test=other))
    assert "3 of 10 (30.0%) rows of the split 'test'" in message
    assert "(2 with the same target, 1 with another)" in message


def test_pairs_are_duplicates_if_both_texts_are():
    pairs = {"text": ["a", "a", "a", "b"], "text_pair": ["x", "y", "x", "x"], "label": [0, 1, 0, 1]}
    assert "1 of 4" in only(look(train=pairs))


def test_rows_that_resampling_repeated_are_no_duplicates():
    task = TextClassification()
    raw = with_column(Dataset.from_dict(rows(10)), "row", list(range(10)), Value("int64"))
    train = task.prepare({"train": raw}, ())["train"].select([0, 0, 1, 2, 3, 3, 5])
    assert preflight({"train": train}, task) == []


@pytest.mark.parametrize(("share", "found"), [(0.5, 0), (0.55, 0), (0.8, 1)])
def test_class_shares_that_differ_by_more_than_chance(share, found):
    test = ["a"] * int(200 * share) + ["b"] * (200 - int(200 * share))
    messages = look(train=rows(400, label=["a", "b"] * 200), test=rows(200, "x", test))
    assert len(messages) == found
    if found:
        assert "30% of its rows would have to change class" in messages[0]
        assert "(50% in training, 80% there)" in messages[0]


def test_regression_targets_that_moved():
    task = TextRegression()
    train, test = rows(50, label=list(range(50))), rows(50, "x", list(range(50, 100)))
    message = only(look(task, train=train, test=test))
    assert "'label' is 24.5 in training and 74.5 in the split 'test', 3.5 standard" in message


def test_multi_label_and_regression_duplicates_compare_targets():
    task = TextClassification(labels="multi")
    train = rows(6, label=[["a"], ["b"], ["a", "b"], ["a"], ["b"], ["b"]])
    test = rows(3, label=[["a"], ["a"], ["a", "b"]])
    messages = look(task, train=train, test=test)
    assert "(2 with the same target, 1 with another)" in messages[0]
    numbers = look(
        TextRegression(), train=rows(6, label=[0.1, 2, 3, 4, 5, 6]), test=rows(1, label=[0.1])
    )
    assert "(1 with the same target, 0 with another)" in numbers[0]
