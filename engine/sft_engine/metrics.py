"""Metrics by name, computed by torchmetrics over all examples of a split at once.

A name is one of torchmetrics' own (`matthews_corrcoef`; dashes do as well) or a short one of this table:

accuracy (share of right examples, of right flags in multi-label), balanced-accuracy (mean recall of
the classes that occur; in multi-label the mean over labels of recall and specificity, of labels that occur
and are absent), f1, precision, recall, specificity (macro), support (number of examples), nll and loss (mean
loss), auroc, average-precision, mcc, kappa, quadratic-kappa, ece, exact-match (multi-label),
confusion-matrix; mse, rmse, mae, mape, r2, pearson, spearman, kendall.

`-macro`, `-micro` or `-weighted` says how classes are averaged. `NAME/CLASS` is the value of one class (or
target), `NAME/*` of each. A ratio of nothing to nothing counts 0, as in scikit-learn, but areas under
curves are NaN for a class without positive or negative examples. A macro mean leaves out what neither is
nor is predicted. If a single output of the model is NaN, every metric is NaN.

Names are checked without importing torch.
"""

from __future__ import annotations

import ast
import importlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_engine.errors import RecipeError
from sft_engine.sentences import suggest

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["classification", "multi-label", "regression"]

_KINDS: tuple[Kind, ...] = ("classification", "multi-label", "regression")
_PREFIX = {"classification": "multiclass_", "multi-label": "multilabel_", "regression": ""}
_SHORT = {
    "f1": "f1_score",
    "mcc": "matthews_corrcoef",
    "kappa": "cohen_kappa",
    "quadratic_kappa": "cohen_kappa",
    "ece": "calibration_error",
    "mse": "mean_squared_error",
    "rmse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "r2": "r2_score",
    "pearson": "pearson_corrcoef",
    "spearman": "spearman_corrcoef",
    "kendall": "kendall_rank_corrcoef",
}
_FIXED: dict[str, dict[str, Any]] = {
    "accuracy": {"average": "micro"},
    "quadratic_kappa": {"weights": "quadratic"},
    "rmse": {"squared": False},
}
_OWN = {
    "classification": {"nll", "loss", "balanced_accuracy", "support"},
    "multi-label": {"nll", "loss", "balanced_accuracy", "support"},
    "regression": {"loss"},
}
_CURVES = {"auroc", "average_precision"}
_NOT_BY_NAME = re.compile(
    # these need a further number, return curves, or take other things than outputs and targets
    r"_at_|fbeta|^roc$|curve|stat|fairness|ranked|critical|divergence|minkowski|cosine|logauc"
)
_AVERAGE = re.compile(r"_(macro|micro|weighted)$")
_LESS = {"loss", "nll", "error", "mse", "rmse", "mae", "mape", "smape", "ece", "eer", "distance"} | {
    "deviance", "divergence", "perplexity", "brier", "wer", "cer", "seconds", "gap"
}  # fmt: skip
_MORE = {
    "accuracy",
    "precision",
    "recall",
    "auc",
    "map",
    "ap",
    "bleu",
    "rouge",
    "score",
    "dice",
    "iou",
}
MANY_CLASSES = 50
"""With more classes than this, values by class are computed only if they are asked for."""
BY_CLASS = ("precision/*", "recall/*", "f1/*", "support/*")
"""What a table of classes shows."""


@dataclass(frozen=True)
class Metric:
    """A metric as it was asked for.

    Args:
        name: As written in the recipe, without the class.
        function: In torchmetrics, without its prefix, or one of our own.
        options: Passed to the function.
        of: A class, `*` for each class, or empty for one number over all.
    """

    name: str
    function: str
    options: Mapping[str, Any]
    of: str = ""


# --- Names: no torch in here ---------------------------------------------------------------------


@cache
def known(kind: Kind) -> frozenset[str]:
    """Return the functions of torchmetrics for a kind of head, read from its source."""
    package = find_spec("torchmetrics")
    assert package is not None
    assert package.origin is not None
    folder = "regression" if kind == "regression" else "classification"
    source = Path(package.origin).parent / "functional" / folder / "__init__.py"
    prefix = _PREFIX[kind]
    names = {name.removeprefix(prefix) for name in _exports(source) if name.startswith(prefix)}
    if kind == "classification":
        names.discard("exact_match")  # for several targets an example: here it is the accuracy
    return frozenset(name for name in names if not _NOT_BY_NAME.search(name))


def _exports(source: Path) -> list[str]:
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def parse(name: str, kind: Kind) -> Metric | None:
    """Return what a name asks for, or None if there is no such metric for this kind of head."""
    head, _, of = name.partition("/")
    key = head.replace("-", "_")
    if key in _OWN[kind]:
        return Metric(head, key, {}, of) if not of or key == "support" else None
    options: dict[str, Any] = dict(_FIXED.get(key, {}))
    average = None if kind == "regression" or key in known(kind) else _AVERAGE.search(key)
    if average:
        key = key[: average.start()]
        options["average"] = average[1]
    function = _SHORT.get(key, key)
    return Metric(head, function, options, of) if function in known(kind) else None


def problems(names: Iterable[str], kind: Kind) -> dict[str, str]:
    """Return for each unknown name what is wrong with it: what is near, or what there is."""
    found = {}
    for name in names:
        if parse(name, kind) is None:
            hint = suggest(name.partition("/")[0].replace("_", "-"), names_for(kind))
            listing = ", ".join(names_for(kind))
            found[name] = hint or f"for {kind} there are: {listing}"
    return found


def names_for(kind: Kind) -> list[str]:
    """Return all metric names of a kind of head: short ones where there are, dashes for underscores."""
    functions = known(kind)
    short = {key for key, function in _SHORT.items() if function in functions}
    hidden = {_SHORT[key] for key in short}
    return sorted(n.replace("_", "-") for n in (functions - hidden) | short | _OWN[kind])


def direction_of(name: str) -> Literal["max", "min"]:
    """Return which way a metric is better: `max`, or `min` for losses, errors and distances.

    Args:
        name: May carry split, view and class: `validation/f1/negative`.

    Raises:
        RecipeError: the name says neither.
    """
    parts = name.split("/")
    exact = [part for part in parts if any(parse(part, kind) for kind in _KINDS)]
    for part in exact or reversed(parts):
        words = set(re.split(r"[^a-z0-9]+", part.lower()))
        if words & _LESS:
            return "min"
        if exact or words & _MORE:
            return "max"
    raise RecipeError(
        f"nobody knows whether more or less of the metric '{name}' is better; set direction to "
        '"max" or "min" beside the key that names it.'
    )


# --- Values --------------------------------------------------------------------------------------


def single_label(
    logits: Tensor, label: Tensor, loss: Tensor, classes: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Compute metrics of one class out of many.

    Args:
        logits: (n, classes).
        label: Class ids (n,); negative ones are left out.
        loss: Of each example (n,).
        classes: Their names.
        names: Metrics; empty for the usual ones.

    Raises:
        RecipeError: there is no such metric or class.
    """
    kept = label >= 0
    shares = logits[kept].double().softmax(dim=1)
    data = _Data("classification", shares, label[kept], loss[kept], tuple(classes))
    return _compute(
        data, names or _usual(len(classes), "accuracy", "f1", "balanced-accuracy", "nll")
    )


def multi_label(
    logits: Tensor, label: Tensor, loss: Tensor, classes: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Compute metrics of any out of many labels; a label is predicted above one half.

    Args:
        logits: (n, labels).
        label: Flags (n, labels).
        loss: Of each example (n,).
        classes: Names of the labels.
        names: Metrics; empty for the usual ones.

    Raises:
        RecipeError: there is no such metric or label.
    """
    shares = logits.double().sigmoid()
    data = _Data("multi-label", shares, (label > 0.5).long(), loss, tuple(classes))  # noqa: PLR2004
    usual = ("f1", "f1-micro", "balanced-accuracy", "accuracy", "exact-match", "nll")
    return _compute(data, names or _usual(len(classes), *usual))


def regression(
    outputs: Tensor, target: Tensor, loss: Tensor, targets: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Compute metrics of numbers; of several targets the mean over targets.

    Args:
        outputs: (n, targets).
        target: (n, targets).
        loss: Of each example (n,).
        targets: Their names.
        names: Metrics; empty for the usual ones.

    Raises:
        RecipeError: there is no such metric or target.
    """
    data = _Data("regression", outputs.double(), target.double(), loss, tuple(targets))
    usual = ["mse", "rmse", "mae", "r2", "pearson", "spearman"]
    return _compute(data, names or usual)


def _usual(classes: int, *names: str) -> list[str]:
    return [*names, *((*BY_CLASS, "confusion-matrix") if classes <= MANY_CLASSES else ())]


@dataclass(frozen=True)
class _Data:
    """All predictions of a split: (n, classes) or (n, targets), and what belongs to them."""

    kind: Kind
    outputs: Tensor
    label: Tensor
    loss: Tensor
    names: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """Whether nothing can be said: no examples, or a NaN among the outputs."""
        return len(self.outputs) == 0 or bool(self.outputs.isnan().any())


def _compute(data: _Data, names: Sequence[str]) -> dict[str, Any]:
    wrong = problems(names, data.kind)
    if wrong:
        name, hint = next(iter(wrong.items()))
        raise RecipeError(f"evaluation.metrics: there is no metric '{name}'; {hint}")
    values: dict[str, Any] = {}
    for name in names:
        metric = parse(name, data.kind)
        assert metric is not None
        values |= _values(metric, data)
    return values


def _values(metric: Metric, data: _Data) -> dict[str, Any]:
    """Return one value, or one a class."""
    if not metric.of:
        value = _whole(metric, data)
        name = "confusion_matrix" if metric.function == "confusion_matrix" else metric.name
        return {name: value}
    if metric.of != "*" and metric.of not in data.names:
        what = "target" if data.kind == "regression" else "class"
        listing = ", ".join(data.names[:MANY_CLASSES])
        raise RecipeError(
            f"evaluation.metrics: '{metric.name}/{metric.of}' names no {what}; there are: {listing}."
        )
    each = dict(zip(data.names, _by_class(metric, data), strict=True))
    wanted = data.names if metric.of == "*" else (metric.of,)
    return {f"{metric.name}/{name}": each[name] for name in wanted}


def _whole(metric: Metric, data: _Data) -> Any:
    if metric.function in ("nll", "loss"):
        return float(data.loss.double().mean()) if len(data.loss) else math.nan
    if data.broken:
        return _nan(metric, data)
    if metric.function in _COMPUTED:
        return _COMPUTED[metric.function](data)
    if metric.function in _CURVES and metric.options.get("average") != "micro":
        return _average(_by_class(metric, data), metric, data)
    if data.kind == "regression":
        return _mean(_by_class(metric, data))
    return _plain(_call(metric, data, **metric.options))


def _balanced_accuracy(data: _Data) -> float:
    recall = _by_class(Metric("recall", "recall", {}), data)
    counts = _positives(data)
    if data.kind == "classification":
        return _mean([value for value, count in zip(recall, counts, strict=True) if count])
    others = _by_class(Metric("specificity", "specificity", {}), data)
    both = [0 < count < len(data.label) for count in counts]
    pairs = zip(recall, others, both, strict=True)
    return _mean([(one + other) / 2 for one, other, kept in pairs if kept])


def _support(data: _Data) -> int:
    return sum(_positives(data))


_COMPUTED: dict[str, Callable[[_Data], float]] = {
    "balanced_accuracy": _balanced_accuracy,
    "support": _support,
}


def _nan(metric: Metric, data: _Data) -> Any:
    if metric.function != "confusion_matrix":
        return math.nan
    size = len(data.names)
    if data.kind == "multi-label":
        return [[[math.nan] * 2] * 2 for _ in range(size)]
    return [[math.nan] * size for _ in range(size)]


def _average(values: Sequence[float], metric: Metric, data: _Data) -> float:
    if metric.options.get("average") != "weighted":
        return _mean(values)
    counts = _positives(data)
    pairs = zip(values, counts, strict=True)
    return sum(v * n for v, n in pairs if n) / sum(counts) if sum(counts) else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _positives(data: _Data) -> list[int]:
    if data.kind == "multi-label":
        return [int(n) for n in data.label.sum(dim=0)]
    return [int(n) for n in data.label.bincount(minlength=len(data.names))]


def _by_class(metric: Metric, data: _Data) -> Sequence[float]:
    """Return one value a class, or a target."""
    if data.broken:
        return [math.nan] * len(data.names)
    if metric.function == "support":
        return _positives(data)
    if data.kind == "regression":
        return [_one_target(metric, data, i) for i in range(len(data.names))]
    options = {k: v for k, v in metric.options.items() if k != "average"}
    values = _call(metric, data, average="none", **options).tolist()
    if metric.function not in _CURVES:
        return [float(value) for value in values]
    total, needs_negatives = len(data.label), metric.function == "auroc"
    return [
        value if count > 0 and not (needs_negatives and count == total) else math.nan
        for value, count in zip(values, _positives(data), strict=True)
    ]


def _one_target(metric: Metric, data: _Data, index: int) -> float:
    """Compute over one column; NaN where the metric needs more examples than there are."""
    outputs, target = data.outputs[:, index], data.label[:, index]
    if len(target) < 2 and metric.function not in ("mean_squared_error", "mean_absolute_error"):  # noqa: PLR2004
        return math.nan
    function = _function(metric, data.kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant columns: the NaN that they give says so
        value = function(outputs.contiguous(), target.contiguous(), **metric.options)
    return float(value)


def _call(metric: Metric, data: _Data, **options: Any) -> Tensor:
    function = _function(metric, data.kind)
    size = {"num_labels" if data.kind == "multi-label" else "num_classes": len(data.names)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without examples: handled by the caller
            value: Tensor = function(data.outputs, data.label, **size, **options)
    except (TypeError, ValueError) as error:
        asked = f" with {options}" if options else ""
        raise RecipeError(
            f"evaluation.metrics: torchmetrics cannot compute '{metric.name}'{asked}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return value


def _function(metric: Metric, kind: Kind) -> Callable[..., Any]:
    folder = "regression" if kind == "regression" else "classification"
    functions = importlib.import_module(f"torchmetrics.functional.{folder}")
    function: Callable[..., Any] = getattr(functions, _PREFIX[kind] + metric.function)
    return function


def _plain(value: Any) -> Any:
    """Return a number, or nested lists of numbers."""
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value.tolist() if value.ndim else float(value)
