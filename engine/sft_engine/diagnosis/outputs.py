"""What the predictions of a split say in a few numbers, so that a record can keep them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MASKED = -100
MOST_CLASSES = 1000
"""With more classes than this, counts by class are left out of the records."""
SUSPECTS = 10
"""Rows that are named."""


def summary(
    predictions: Mapping[str, NDArray[Any]], kind: str, rows: Sequence[int] | None = None
) -> dict[str, Any]:
    """Sum up the predictions of a split.

    Args:
        predictions: `logits` (n, outputs), `label` and the plain `loss` (n,), as a task keeps them; other
            shapes, and what is missing, are passed over.
        kind: Of the head: `classification`, `multi-label` or `regression`.
        rows: What messages call the examples; None for their places.

    Returns:
        `examples`, `broken` (with NaN), `loss` with its standard `loss_error`, `spread` of the outputs over
        examples; with classes `accuracy` and, by class, `predicted`, `labels` and `hits`; and for one class
        an example `noise`, as `label_noise` gives it.
    """
    logits = predictions.get("logits")
    if logits is None or logits.ndim != 2 or not len(logits):  # noqa: PLR2004  (examples, outputs)
        return {}
    logits = np.asarray(logits, dtype=np.float64)
    found: dict[str, Any] = {
        "examples": len(logits),
        "broken": int(np.isnan(logits).any(axis=1).sum()),
        "spread": spread(logits, centred=kind == "classification"),
    }
    label = predictions.get("label")
    if label is None:
        return found
    known = label != MASKED if label.ndim == 1 else np.ones(len(label), dtype=np.bool_)
    found |= _loss(predictions.get("loss"), known)
    if not known.any() or found["broken"]:
        return found
    if kind == "classification" and label.ndim == 1:
        places = np.arange(len(logits)) if rows is None else np.asarray(rows)
        found |= _classes(logits[known], label[known].astype(np.int64), places[known])
    elif kind == "multi-label" and label.shape == logits.shape:
        found |= _flags(logits > 0, label > 0.5)  # noqa: PLR2004  (a probability of one half)
    elif kind == "regression":
        found["label_spread"] = spread(np.asarray(label, dtype=np.float64).reshape(len(label), -1))
    return found


def spread(outputs: Floats, *, centred: bool = False) -> float:
    """Return how much outputs (n, k) differ between examples: the root of the mean variance.

    Args:
        outputs: One row an example.
        centred: What is added to all logits of an example changes no probability, and does not count.
    """
    if centred:
        outputs = outputs - outputs.mean(axis=1, keepdims=True)
    return float(np.sqrt(outputs.var(axis=0).mean()))


def _loss(loss: NDArray[Any] | None, known: NDArray[np.bool_]) -> dict[str, float]:
    if loss is None or loss.shape != known.shape or not known.any():
        return {}
    kept = np.asarray(loss[known], dtype=np.float64)
    error = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else math.nan
    return {"loss": float(kept.mean()), "loss_error": error}


def _classes(logits: Floats, label: Ints, rows: NDArray[Any]) -> dict[str, Any]:
    classes = logits.shape[1]
    chosen = logits.argmax(axis=1)
    found: dict[str, Any] = {"accuracy": float((chosen == label).mean())}
    if classes <= MOST_CLASSES:
        right = label[chosen == label]
        counted = {"predicted": chosen, "labels": label, "hits": right}
        found |= {k: np.bincount(v, minlength=classes).tolist() for k, v in counted.items()}
    found["noise"] = label_noise(softmax(logits), label, rows)
    return found


def _flags(chosen: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "accuracy": float((chosen == true).mean()),
        "predicted": chosen.sum(axis=0).tolist(),
        "labels": true.sum(axis=0).tolist(),
        "hits": (chosen & true).sum(axis=0).tolist(),
    }


def softmax(logits: Floats) -> Floats:
    """Return probabilities (n, classes) of logits."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


# --- labels that may be wrong ---------------------------------------------------------------------


def label_noise(
    probabilities: Floats, label: Ints, rows: Sequence[int] | NDArray[Any]
) -> dict[str, Any]:
    """Count labels of held-out examples that a confident prediction contradicts.

    Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
    Dataset Labels", equations 1 and 2): an example counts for the most probable class whose probability is
    at least the mean probability of that class among the examples that are labelled with it; where that
    is not its label, it is a suspect.

    Args:
        probabilities: (n, classes), of examples that were not trained on.
        label: Class ids (n,).
        rows: What the examples are called.

    Returns:
        `suspects`: how many; `rows`: the first of them, by how much more probable the other class is, with
        their `labels` and what is `predicted`; `sure_error` and `unsure_error`: share of wrong predictions
        in the surer half of the examples and in the other.
    """
    everyone = np.arange(len(label))
    counted = confident_class(probabilities, label)
    suspects = np.flatnonzero((counted >= 0) & (counted != label))
    margin = probabilities[suspects, counted[suspects]] - probabilities[suspects, label[suspects]]
    first = suspects[np.argsort(-margin, kind="stable")[:SUSPECTS]]
    sure = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != label)[sure]
    half = (len(everyone) + 1) // 2
    return {
        "suspects": len(suspects),
        "rows": [int(row) for row in np.asarray(rows)[first]],
        "labels": label[first].tolist(),
        "predicted": counted[first].tolist(),
        "sure_error": float(wrong[:half].mean()),
        "unsure_error": float(wrong[half:].mean()) if len(wrong) > half else 0.0,
    }


def confident_class(probabilities: Floats, label: Ints) -> Ints:
    """Return the class that each example counts for in the confident joint; -1 for none."""
    classes = probabilities.shape[1]
    thresholds = np.full(classes, np.inf)
    for each in np.unique(label):
        thresholds[each] = probabilities[label == each, each].mean()
    eligible = probabilities >= thresholds
    best = np.where(eligible, probabilities, -1.0).argmax(axis=1)
    return np.where(eligible.any(axis=1), best, -1)
