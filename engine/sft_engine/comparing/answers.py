"""What a run answered to each example, and metrics as functions of means over examples.

Written like that, a metric can be resampled by `significance.bootstrap`. Values are those of
`sft_engine.metrics`, which are computed by torchmetrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft_engine.errors import DataError

Floats = NDArray[np.floating[Any]]
Kind = Literal["classification", "multi-label", "regression"]

MAIN: Mapping[Kind, str] = {
    "classification": "accuracy",
    "multi-label": "f1",
    "regression": "mse",
}
"""The main metric of each kind of task."""

HALF = 0.5
BINS = 15
"""Of the calibration error, as in `sft_engine.metrics`."""


@dataclass(frozen=True)
class Answers:
    """The predictions of a run on a split, in the order of the row numbers.

    Args:
        path: The file that they were read from.
        kind: Of task.
        rows: Numbers of the examples.
        truth: Class ids (n,), flags (n, labels) or numbers (n, targets).
        given: Probabilities (n, classes) or (n, labels), or numbers (n, targets).
        names: Of classes, labels or targets.
        records: Labels as they stand in the file, to compare files.
    """

    path: Path
    kind: Kind
    rows: tuple[Any, ...]
    truth: NDArray[Any]
    given: Floats
    names: tuple[str, ...]
    records: tuple[str, ...]

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Which examples have no answer, because the model returned NaN (n,)."""
        return np.asarray(np.isnan(self.given).any(axis=1))

    @cached_property
    def chosen(self) -> NDArray[Any]:
        """What was answered: class ids (n,), flags (n, labels) or numbers (n, targets)."""
        if self.kind == "classification":
            return np.asarray(np.where(self.broken, -1, self.given.argmax(axis=1)))
        return np.asarray(self.given > HALF) if self.kind == "multi-label" else self.given

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """Which examples are wholly right (n,); None where answers are numbers."""
        if self.kind == "regression":
            return None
        equal = self.chosen == self.truth
        return np.asarray(equal if equal.ndim == 1 else equal.all(axis=1))

    def of_rows(self, rows: Sequence[Any]) -> Answers:
        """Return the answers to these rows alone."""
        wanted = set(rows)
        places = [place for place, row in enumerate(self.rows) if row in wanted]
        return replace(
            self,
            rows=tuple(self.rows[place] for place in places),
            truth=self.truth[places],
            given=self.given[places],
            records=tuple(self.records[place] for place in places),
        )


def read_answers(path: Path) -> Answers | None:
    """Read `predictions/SPLIT.jsonl`; None if it is not there, or has no true labels.

    Examples without a label are left out, as they are of the metrics.

    Raises:
        DataError: a line is no prediction.
    """
    if not path.is_file():
        return None
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            records.append(_record(line, f"{path}:{number}"))
    labelled = [record for record in records if record.get("label") is not None]
    if not labelled:
        return None
    # Stable: rows that share a number, as perturbed copies might, keep their order.
    labelled.sort(key=lambda record: record["row"])
    try:
        return _assembled(path, labelled)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no predictions of one task ({type(error).__name__}: {error}): write it again "
            "with `sft-engine run`"
        ) from error


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("row"), int):
        raise DataError(
            f"{where} is no prediction: it must be a JSON object with `row`, `prediction` and `label`, as "
            "`sft-engine run` writes it"
        )
    return record


def _assembled(path: Path, records: Sequence[Mapping[str, Any]]) -> Answers:
    label = records[0]["label"]
    rows = tuple(record["row"] for record in records)
    texts = tuple(_text(record["label"]) for record in records)
    if isinstance(label, (int, float, dict)):
        names = tuple(label) if isinstance(label, dict) else ("label",)
        truth, given = (
            np.array([_numbers(record[key], names) for record in records], dtype=np.float64)
            for key in ("label", "prediction")
        )
        return Answers(path, "regression", rows, truth, given, names, texts)
    names = tuple(records[0]["probabilities"])
    shares = np.array(
        [[record["probabilities"][name] for name in names] for record in records], dtype=np.float64
    )
    ids = {name: place for place, name in enumerate(names)}
    if isinstance(label, list):
        flags = np.zeros(shares.shape, dtype=bool)
        for row, record in zip(flags, records, strict=True):
            row[[ids[name] for name in record["label"]]] = True
        return Answers(path, "multi-label", rows, flags, shares, names, texts)
    truth = np.array([ids[record["label"]] for record in records])
    return Answers(path, "classification", rows, truth, shares, names, texts)


def _text(label: Any) -> str:
    """Write a label so that equal ones are equal texts; a class name is one."""
    return label if isinstance(label, str) else json.dumps(label, sort_keys=True)


def _numbers(value: Any, names: Sequence[str]) -> list[float]:
    if value is None:
        return [math.nan] * len(names)
    return [value[name] for name in names] if isinstance(value, dict) else [value]


# --- Metrics as functions of means ---------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A metric that can be resampled.

    Args:
        columns: What is averaged over examples (n, m).
        finish: Takes the means (..., m) and returns the metric (...).
        linear: Whether the metric is such a mean itself.
    """

    columns: Callable[[Answers], Floats]
    finish: Callable[[Floats], Floats]
    linear: bool = False


def measure_of(metric: str, kind: Kind) -> Measure | None:
    """Return how to resample a metric; None if that is not known for this kind of task."""
    return _MEASURES[kind].get(metric)


def columns_of(measure: Measure, answers: Answers) -> Floats:
    """Return what a metric averages; NaN throughout if one answer is missing, as the metric itself."""
    columns = np.asarray(measure.columns(answers), dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    return columns if not answers.broken.any() else np.full(columns.shape, np.nan)


def value_of(measure: Measure, answers: Answers) -> float:
    """Return the metric over all examples."""
    if answers.broken.any():
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(measure.finish(columns_of(measure, answers).mean(axis=0)))


def _first(means: Floats) -> Floats:
    return np.asarray(means[..., 0])


def _one_hot(ids: NDArray[Any], size: int) -> Floats:
    return np.asarray(np.eye(size)[ids])


def _counts(answers: Answers) -> Floats:
    """Return for each class whether it is hit, predicted and true, side by side (n, 3 classes)."""
    size = len(answers.names)
    if answers.kind == "multi-label":
        predicted, true = answers.chosen.astype(float), answers.truth.astype(float)
    else:
        # The last column takes answers that are missing.
        predicted = _one_hot(answers.chosen, size + 1)[:, :size]
        true = _one_hot(answers.truth, size)
    return np.hstack([predicted * true, predicted, true])


def _thirds(means: Floats) -> tuple[Floats, Floats, Floats]:
    hit, predicted, true = np.split(means, 3, axis=-1)
    return hit, predicted, true


def _ratio(upper: Floats, lower: Floats) -> Floats:
    """Divide; a ratio of nothing to nothing counts 0."""
    return np.asarray(np.where(lower > 0, upper / np.where(lower > 0, lower, 1), 0.0))


def _macro(values: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Average over the classes that count."""
    return np.asarray(np.where(counted, values, 0).sum(axis=-1) / counted.sum(axis=-1))


def _f1(means: Floats) -> Floats:
    hit, predicted, true = _thirds(means)
    return _macro(_ratio(2 * hit, predicted + true), predicted + true > 0)


def _precision(means: Floats) -> Floats:
    hit, predicted, true = _thirds(means)
    return _macro(_ratio(hit, predicted), predicted + true > 0)


def _recall(means: Floats) -> Floats:
    hit, predicted, true = _thirds(means)
    return _macro(_ratio(hit, true), predicted + true > 0)


def _balanced_accuracy(means: Floats) -> Floats:
    hit, _, true = _thirds(means)
    return _macro(_ratio(hit, true), true > 0)


def _f1_of_labels(means: Floats) -> Floats:
    hit, predicted, true = _thirds(means)
    return np.asarray(_ratio(2 * hit, predicted + true).mean(axis=-1))


def _f1_micro(means: Floats) -> Floats:
    hit, predicted, true = (part.sum(axis=-1) for part in _thirds(means))
    return _ratio(2 * hit, predicted + true)


def _mcc(means: Floats) -> Floats:
    """Return Matthews' coefficient of several classes (J. Gorodkin, 2004)."""
    hit, predicted, true = _thirds(means)
    shared = hit.sum(axis=-1) - (predicted * true).sum(axis=-1)
    room = (1 - (predicted**2).sum(axis=-1)) * (1 - (true**2).sum(axis=-1))
    return np.asarray(np.where(room > 0, shared / np.sqrt(np.where(room > 0, room, 1)), 0.0))


def _log_loss(answers: Answers) -> Floats:
    share = answers.given[np.arange(len(answers.rows)), answers.truth]
    return np.asarray(-np.log(np.maximum(share, np.finfo(np.float64).tiny)))


def _binary_log_loss(answers: Answers) -> Floats:
    share = np.where(answers.truth, answers.given, 1 - answers.given)
    return np.asarray(-np.log(np.maximum(share, np.finfo(np.float64).tiny)).mean(axis=1))


def _calibration_gaps(answers: Answers) -> Floats:
    """Return confidence minus rightness, each example's in the column of its bin (n, bins)."""
    confidence = answers.given.max(axis=1)
    bins = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    gap = confidence - (answers.chosen == answers.truth)
    return np.asarray(_one_hot(bins, BINS) * gap[:, None])


def _squares(answers: Answers) -> Floats:
    return np.asarray((answers.given - answers.truth) ** 2)


def _moments(answers: Answers) -> Floats:
    """Return per target what second moments are made of (n, 5 targets); shifted, for accuracy."""
    shift = answers.truth.mean(axis=0)
    x, y = answers.given - shift, answers.truth - shift
    return np.hstack([x, y, x * x, y * y, x * y])


def _central(means: Floats) -> tuple[Floats, Floats, Floats]:
    x, y, xx, yy, xy = np.split(means, 5, axis=-1)
    return xx - x * x, yy - y * y, xy - x * y


def _pearson(means: Floats) -> Floats:
    of_x, of_y, both = _central(means)
    return np.asarray((both / np.sqrt(of_x * of_y)).mean(axis=-1))


def _r2(means: Floats) -> Floats:
    _, y, xx, yy, xy = np.split(means, 5, axis=-1)
    return np.asarray((1 - (xx - 2 * xy + yy) / (yy - y * y)).mean(axis=-1))


def _mean_of(columns: Callable[[Answers], Floats]) -> Measure:
    """Return a metric that is the mean over examples of their mean over columns."""

    def one_column(answers: Answers) -> Floats:
        values = np.asarray(columns(answers), dtype=np.float64)
        return values if values.ndim == 1 else np.asarray(values.mean(axis=1))

    return Measure(one_column, _first, linear=True)


def _flags_right(answers: Answers) -> Floats:
    return np.asarray((answers.chosen == answers.truth).astype(float))


def _all_right(answers: Answers) -> Floats:
    assert answers.right is not None
    return np.asarray(answers.right.astype(float))


_MEASURES: Mapping[Kind, Mapping[str, Measure]] = {
    "classification": {
        "accuracy": _mean_of(_all_right),
        "nll": _mean_of(_log_loss),
        "loss": _mean_of(_log_loss),
        "balanced-accuracy": Measure(_counts, _balanced_accuracy),
        "f1": Measure(_counts, _f1),
        "precision": Measure(_counts, _precision),
        "recall": Measure(_counts, _recall),
        "mcc": Measure(_counts, _mcc),
        "ece": Measure(_calibration_gaps, lambda means: np.abs(means).sum(axis=-1)),
    },
    "multi-label": {
        "accuracy": _mean_of(_flags_right),
        "exact-match": _mean_of(_all_right),
        "nll": _mean_of(_binary_log_loss),
        "loss": _mean_of(_binary_log_loss),
        "f1": Measure(_counts, _f1_of_labels),
        "f1-micro": Measure(_counts, _f1_micro),
    },
    "regression": {
        "mse": _mean_of(_squares),
        "mae": _mean_of(lambda answers: np.abs(answers.given - answers.truth)),
        "rmse": Measure(_squares, lambda means: np.sqrt(means).mean(axis=-1)),
        "pearson": Measure(_moments, _pearson),
        "r2": Measure(_moments, _r2),
    },
}
