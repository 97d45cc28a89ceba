"""What a section says, from numbers alone."""

from __future__ import annotations

import math

import pytest

from sft_probes.blocks import Curve, affected_block, curve_blocks, curve_summary


def curve(**changes) -> Curve:
    given = {
        "metric": "accuracy",
        "axis": "typo rate",
        "split": "test",
        "examples": 100,
        "seed": 0,
        "severities": [0.0, 0.1, 0.2],
        "values": [0.9, 0.8, 0.5],
        "more": [
            {"changed": 0.0, "drop": 0.0},
            {"changed": 0.12, "drop": 0.1},
            {"changed": 0.4, "drop": 0.4},
        ],
    }
    return Curve(**{**given, **changes})


def test_the_summary_is_about_the_worst_severity() -> None:
    assert curve_summary(curve()) == (
        "Accuracy falls from 0.900 to 0.500 at typo rate 0.2; 40.0% of the predictions change there."
    )


def test_errors_rise_and_what_stays_stays() -> None:
    more = [{"moved": 0.0, "drop": 0.0}, {"moved": 0.25, "drop": 0.3}]
    worse = curve(metric="mse", severities=[0.0, 1.0], values=[1.0, 1.3], more=more)
    assert curve_summary(worse) == (
        "Mse rises from 1.000 to 1.300 at typo rate 1; predictions move by 0.25 there."
    )
    same = [{"changed": 0.0, "drop": 0.0}] * 2
    still = curve(severities=[0.0, "upper"], axis="style", values=[0.9, 0.9], more=same)
    assert curve_summary(still).startswith("Accuracy stays at 0.900 at 'upper'; 0.0%")


def test_a_better_value_is_called_better() -> None:
    more = [{"changed": 0.0, "drop": 0.0}, {"changed": 0.1, "drop": -0.1}]
    better = curve(severities=[0.0, 0.1], values=[0.8, 0.9], more=more)
    assert "rises from 0.800 to 0.900, which is better, at" in curve_summary(better)


def test_nan_is_the_worst_and_has_no_place_in_a_chart() -> None:
    more = [{"drop": 0.0}, {"drop": math.nan}, {"drop": 0.4}]
    broken = curve(values=[0.9, math.nan, 0.5], more=more)
    assert "goes from 0.900 to NaN at typo rate 0.1" in curve_summary(broken)
    chart, table = curve_blocks(broken)
    assert chart["series"][0]["values"] == [0.9, None, 0.5]
    assert table["rows"][1][1:] == [None, None]
    assert broken.facts()["drop"] == [0.0, None, 0.4]


def test_the_chart_has_a_band_and_begins_with_the_clean_value() -> None:
    chart, table = curve_blocks(curve())
    assert chart["x"]["values"] == [0.0, 0.1, 0.2]
    accuracy, changes = chart["series"]
    assert accuracy["values"] == [0.9, 0.8, 0.5]
    # Wilson's interval of 50 in 100, by hand: (0.5 + z²/200 ± z * sqrt(0.0025 + z²/40000)) / (1 + z²/100).
    assert accuracy["low"][2] == pytest.approx(0.4038, abs=1e-4)
    assert accuracy["high"][2] == pytest.approx(0.5962, abs=1e-4)
    assert changes["values"] == [0.0, 0.12, 0.4]
    assert [row[0] for row in table["rows"]] == ["clean", 0.1, 0.2]
    assert table["columns"] == ["typo rate", "accuracy", "predictions changed", "drop"]


def test_severities_below_0_stand_before_the_clean_value() -> None:
    chart, _ = curve_blocks(curve(severities=[0.0, -0.2, 0.1]))
    assert chart["x"]["values"] == [-0.2, 0.0, 0.1]
    assert chart["series"][0]["values"] == [0.8, 0.9, 0.5]


def test_kinds_have_bars() -> None:
    chart, _ = curve_blocks(curve(severities=[0.0, "lower", "upper"], axis="style"))
    assert chart["kind"] == "bars"
    assert chart["labels"] == ["clean", "lower", "upper"]


def test_no_example_no_table() -> None:
    assert affected_block([])[0]["kind"] == "text"
    (block,) = affected_block([{"row": 3, "text": "<script>", "severity": 0.1}])
    assert block["columns"] == ["row", "text", "severity"]
