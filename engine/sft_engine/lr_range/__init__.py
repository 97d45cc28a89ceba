"""The learning-rate range test: `find` for a recipe, `range_test` for a run, `curve` for the arithmetic."""

from __future__ import annotations

from sft_engine.lr_range.sweep import DEFAULT, RangeSettings, RangeTest, find, range_test

__all__ = ["DEFAULT", "RangeSettings", "RangeTest", "find", "range_test"]
