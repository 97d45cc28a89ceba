"""How far the figure of a run can be from the truth because its test set is no larger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_engine.reporting.curves import is_number
from sft_engine.significance.bootstrap import bootstrap
from sft_engine.significance.intervals import Estimate, wilson

Floats = NDArray[np.floating[Any]]
Records = Sequence[Mapping[str, Any]]

RESAMPLES = 1000
_BOOTSTRAP = "bootstrap over examples"


def interval(
    task: Mapping[str, str], metrics: Mapping[str, Any], records: Records
) -> dict[str, Any]:
    """Return the 95 % interval of the task's metric over examples; empty if it is not known how.

    Accuracy: Wilson (1927). F1 averaged over labels, and squared error: BCa bootstrap over examples.

    Returns:
        `method`, `low`, `high`, `examples`.
    """
    if not is_number(metrics.get(task["metric"])) or math.isnan(metrics[task["metric"]]):
        return {}
    known = [r for r in records if r["label"] is not None and r["prediction"] is not None]
    if len(known) < 2:  # noqa: PLR2004 (nothing varies)
        return {}
    method, found = _of((task["kind"], task["metric"]), known)
    if found is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return {}
    return {"method": method, "low": found.low, "high": found.high, "examples": len(known)}


def _of(what: tuple[str, str], known: Records) -> tuple[str, Estimate | None]:
    if what == ("classification", "accuracy"):
        right = sum(r["prediction"] == r["label"] for r in known)
        return "Wilson", wilson(right, len(known))
    if what == ("multi-label", "f1"):
        rows = label_counts(known)
        return _BOOTSTRAP, bootstrap(rows, macro_f1, resamples=RESAMPLES).interval()
    if what == ("regression", "mse"):
        rows = np.array(squared_errors(known))[:, None]
        return _BOOTSTRAP, bootstrap(rows, resamples=RESAMPLES).interval()
    return "", None


def label_counts(records: Records) -> Floats:
    """Return for each example whether each label is a hit, given wrongly, or missed: (n, 3 * labels)."""
    names = list(records[0]["probabilities"])
    given, true = (
        np.array([[name in record[key] for name in names] for record in records])
        for key in ("prediction", "label")
    )
    return np.concatenate([given & true, given & ~true, ~given & true], axis=1).astype(np.float64)


def macro_f1(means: Floats) -> Floats:
    """Return F1 averaged over labels, (b,), of the means of `label_counts`, (b, 3 * labels)."""
    hit, extra, missed = np.split(means, 3, axis=1)
    below = 2 * hit + extra + missed
    f1: Floats = np.divide(2 * hit, below, out=np.zeros_like(hit), where=below > 0)
    averaged: Floats = f1.mean(axis=1)
    return averaged


def squared_errors(records: Records) -> list[float]:
    """Return the squared error of each example, averaged over its targets."""
    errors = []
    for record in records:
        one, two = record["prediction"], record["label"]
        pairs = [(one[n], two[n]) for n in two] if isinstance(two, dict) else [(one, two)]
        errors.append(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    return errors
