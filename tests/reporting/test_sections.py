"""Blocks of sections: what their constructors give and refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sft_engine import sections
from sft_engine.reporting.wording import decimals_of, number


def test_a_section_takes_the_place_of_its_namesake() -> None:
    report: dict = {}
    sections.add_section(report, "typos", "Typos", [sections.text("first")])
    sections.add_section(report, "other", "Other", [])
    again = sections.add_section(report, "typos", "Typos", [sections.text("second")], summary="s")
    assert [each["id"] for each in report["sections"]] == ["typos", "other"]
    assert report["sections"][0] is again
    assert again["blocks"] == [{"kind": "text", "text": "second"}]
    assert again["summary"] == "s"


@pytest.mark.parametrize("name", ["", "Two words", "a<b", "Ä"])
def test_ids_can_be_linked_to(name: str) -> None:
    with pytest.raises(ValueError, match="section id"):
        sections.add_section({}, name, "Title", [])


def test_what_is_no_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no `kind`"):
        sections.add_section({}, "a", "A", [{"title": "x"}])


def test_numbers_of_numpy_become_plain_ones() -> None:
    block = sections.bars("B", ["a", "b"], np.array([1.5, 2.5], dtype=np.float32), low=np.arange(2))
    assert json.loads(json.dumps(block))["values"] == [1.5, 2.5]
    assert block["low"] == [0, 1]
    assert sections.table("T", ["a"], [[np.int64(3)], [None], ["x"]])["rows"] == [
        [3],
        [None],
        ["x"],
    ]
    with pytest.raises(TypeError, match="neither a text nor a number"):
        sections.table("T", ["a"], [[object()]])


@pytest.mark.parametrize(
    "build",
    [
        lambda: sections.table("T", ["a", "b"], [[1]]),
        lambda: sections.lines("L", x=("x", [1, 2]), y="y", series={"s": [1]}),
        lambda: sections.lines(
            "L", x=("x", [1]), y="y", series=[sections.one_series("s", [1], low=[1, 2])]
        ),
        lambda: sections.bars("B", ["a"], [1, 2]),
        lambda: sections.matrix("M", ["a"], ["b", "c"], [[1]]),
        lambda: sections.marked("M", [{"parts": ["a", "b"], "scores": [1]}]),
    ],
)
def test_lengths_must_agree(build) -> None:
    with pytest.raises(ValueError, match="but"):
        build()


def test_pictures_are_data_and_nothing_else() -> None:
    rows = [{"text": "t", "image": "data:image/png;base64,AAAA"}]
    assert sections.examples("E", ["text"], rows)["rows"] == rows
    for image in ("https://example.org/a.png", "javascript:alert(1)", "data:text/html,<p>"):
        with pytest.raises(ValueError, match="data:image"):
            sections.examples("E", ["text"], [{"image": image}])
    with pytest.raises(ValueError, match="no column"):
        sections.examples("E", ["text"], [{"label": "a"}])


def test_findings_have_known_levels() -> None:
    found = sections.finding("overfitting", "warning", "e", step=3, remedies=[("why", "a = 1")])
    assert found["remedies"] == [{"why": "why", "toml": "a = 1"}]
    with pytest.raises(ValueError, match="allowed: info, warning, serious"):
        sections.finding("x", "bad", "e")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ([0.5, 0.7166666, 0.0], ["0.5000", "0.7167", "0.0000"]),
        ([0.02, 0.05, 0.1], ["0.02", "0.05", "0.1"]),  # as somebody chose them
        ([0.0, 0.5], ["0", "0.5"]),
        ([3.52512, 0.49318, None, "all"], ["3.525", "0.493", "", "all"]),
        ([9.5e-06, 0.2816123], ["9.5e-06", "0.2816"]),  # no number of decimals shows both
        ([1057, 0.123456], ["1,057", "0.1235"]),
        ([float("nan"), 0.123456], ["NaN", "0.1235"]),
    ],
)
def test_numbers_below_each_other_have_the_same_decimals(column, shown):
    assert [number(value, decimals_of(column)) for value in column] == shown
