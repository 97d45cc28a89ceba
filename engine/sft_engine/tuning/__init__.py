"""Tuning: `search` looks for the values of a recipe's keys that are best on the validation split."""

from __future__ import annotations

from sft_engine.tuning.search import TrialRow, Tuned, TuneSettings, search

__all__ = ["TrialRow", "TuneSettings", "Tuned", "search"]
