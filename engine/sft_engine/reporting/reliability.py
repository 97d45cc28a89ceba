"""How well probabilities mean what they say: bins of confidence, ECE, and the diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft_engine import sections
from sft_engine.significance.intervals import wilson

BINS = 15


def calibration(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the expected calibration error and what it was computed from.

    ECE = sum_m n_m/n |acc_m - conf_m| over 15 bins of equal width of the greatest probability
    (Guo et al. 2017, section 2).

    Args:
        records: What `Task.records` returns where every example has one class of many.

    Returns:
        `ece`, `confidence`, `accuracy`, `examples`, and `bins` with `low`, `high`, `examples`,
        `confidence` and `accuracy` of each bin that is not empty; empty without any example.
    """
    pairs = [
        (max(record["probabilities"].values()), record["prediction"] == record["label"])
        for record in records
        if record["prediction"] is not None and record["label"] is not None
    ]
    if not pairs:
        return {}
    held: dict[int, list[tuple[float, bool]]] = {}
    for pair in pairs:
        held.setdefault(min(int(pair[0] * BINS), BINS - 1), []).append(pair)
    bins = [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "examples": len(held[place]),
            "confidence": sum(share for share, _ in held[place]) / len(held[place]),
            "accuracy": sum(right for _, right in held[place]) / len(held[place]),
        }
        for place in sorted(held)
    ]
    n = len(pairs)
    return {
        "ece": sum(b["examples"] / n * abs(b["accuracy"] - b["confidence"]) for b in bins),
        "confidence": sum(share for share, _ in pairs) / n,
        "accuracy": sum(right for _, right in pairs) / n,
        "examples": n,
        "bins": bins,
    }


def diagram(found: Mapping[str, Any]) -> list[sections.Block]:
    """Return the reliability diagram with 95 % Wilson bands, and how many examples each bin holds."""
    bins = found["bins"]
    right = [b["accuracy"] for b in bins]
    ends = [wilson(b["accuracy"] * b["examples"], b["examples"]) for b in bins]
    sure = [b["confidence"] for b in bins]
    return [
        sections.lines(
            "Reliability diagram",
            x=("mean probability of the predicted class", sure),
            y="share that is right",
            y_range=(0, 1),
            series=[
                sections.one_series(
                    "model", right, [end.low for end in ends], [end.high for end in ends]
                ),
                sections.one_series("perfectly calibrated", sure),
            ],
        ),
        sections.bars(
            "Examples by probability of the predicted class",
            [f"{b['low']:.2f} to {b['high']:.2f}" for b in bins],
            [b["examples"] for b in bins],
            label="examples",
        ),
    ]
