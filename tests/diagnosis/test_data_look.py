"""What is seen of the data before training."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset

from sft_engine.builtin.tabular import TabularClassification
from sft_engine.builtin.tasks import TextClassification
from sft_engine.diagnosis.data_look import EDGE, look


def prepared(task=None, **splits):
    """Prepare splits given as pairs of input and label."""
    task = task or TextClassification()
    role = next(iter(task.inputs))
    rows = {
        name: Dataset.from_dict({role: [x for x, _ in pairs], "label": [y for _, y in pairs]})
        for name, pairs in splits.items()
    }
    return look(task.prepare(rows, ()), task)


def texts(number, first=0):
    return [(f"text number {i} of them", "ab"[i % 2]) for i in range(first, first + number)]


def test_the_constant_answer():
    found = prepared(train=[*texts(6), ("c", "a"), ("d", "a")])
    assert found["majority"] == 5 / 8
    assert found["chance_loss"] == pytest.approx(-(5 * math.log(5 / 8) + 3 * math.log(3 / 8)) / 8)
    assert (found["head"], found["sizes"]) == ("classification", {"train": 8})


def test_rows_that_are_the_same_but_for_case_blanks_and_points():
    held = [("Text NUMBER 3, of them!", "b"), ("another", "a"), ("text number 1 of  them", "b")]
    found = prepared(train=texts(10), validation=held)
    assert found["overlap"]["validation"] == {"exact": 2, "near": 0, "rows": [0, 2]}


def test_rows_that_begin_or_end_alike():
    body = "".join(chr(97 + i % 26) for i in range(EDGE + 10))
    held = [
        (f"quite another beginning {body}", "a"),
        (f"{body} and other words", "b"),
        ("x y", "a"),
    ]
    train = [*texts(10), (body, "a"), (f"yes {body}", "b")]
    found = prepared(train=train, test=held)
    assert found["overlap"]["test"] == {"exact": 0, "near": 2, "rows": [0, 1]}


def test_a_form_letter_is_no_leak():
    start = "Please say whether the following review of a film is a good one or a bad one: "
    train = [(f"{start}{i} and more", "ab"[i % 2]) for i in range(10)]
    held = [(f"{start}{i} and other words", "ab"[i % 2]) for i in range(20, 26)]
    assert prepared(train=train, test=held)["overlap"]["test"]["near"] == 0


def test_a_word_that_tells_the_class():
    train = [(f"{text} class={label}", label) for text, label in texts(40)]
    tells = prepared(train=train)["tells"]
    assert {(each["word"], each["class"]) for each in tells} == {("class=a", 0), ("class=b", 1)}
    assert prepared(train=texts(40))["tells"] == []


def test_a_column_that_is_the_label():
    def rows(*columns):
        return [([math.sin(i), *(c(i) for c in columns)], "ab"[i % 2]) for i in range(20)]

    assert prepared(TabularClassification(), train=rows(lambda i: 7.0 * (i % 2)))["tells"] == [
        {"column": 1}
    ]
    assert prepared(TabularClassification(), train=rows(lambda i: i % 3))["tells"] == []


def test_inputs_that_are_all_the_same():
    assert prepared(train=[("same", "ab"[i % 2]) for i in range(20)])["distinct"] == 1 / 20
    assert prepared(train=texts(20))["distinct"] == 1
