"""Rules of the verdict about single matters: baseline, over-fitting, classes, calibration, robustness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft_engine.reporting.curves import is_number
from sft_engine.reporting.results import by_class, is_square
from sft_engine.reporting.wording import Point, brief, point, share

Report = Mapping[str, Any]

RISE = 0.1
"""Rise of the validation loss above its least value, as a share of it, that is called over-fitting."""
GAP_RATIO, GAP_LEAST = 1.5, 0.1
"""Validation loss over training loss, and the difference, from which the gap is called large."""
ECE_GOOD, ECE_BAD = 0.05, 0.1
DROP_SMALL, DROP_LARGE = 0.05, 0.1
"""Loss of a metric within 0 and 1 under a perturbation."""
WEAK = 0.75
"""Recall of a class, as a share of the mean recall, below which it is called weak."""
LEAST_SUPPORT = 10
_LEAK = ("in the training split too", "partly memory")
_LEVELS = ("serious", "warning", "info")


def baseline(report: Report) -> Iterator[Point]:
    """Compare accuracy with that of always naming the largest class, and R² with 0."""
    task, metrics = report.get("task") or {}, report.get("metrics") or {}
    if task.get("kind") == "regression":
        if is_number(metrics.get("r2")) and metrics["r2"] <= 0:
            text = f"R² is {brief(metrics['r2'])}: no better than always predicting the mean."
            yield point("Baseline", "serious", text)
        return
    matrix, found = metrics.get("confusion_matrix"), report.get("interval") or {}
    if task.get("metric") != "accuracy" or not found or not isinstance(matrix, list):
        return
    if not is_square(matrix, len(matrix)):
        return
    rows = [sum(row) for row in matrix]
    largest = max(rows) / (sum(rows) or 1)
    if found["low"] > largest:
        text = f"Better than always naming the largest class, which is right in {share(largest)}."
        yield point("Baseline", "good", text)
    else:
        yield point(
            "Baseline",
            "serious",
            f"Not shown to be better than always naming the largest class, which is right in "
            f"{share(largest)}.",
        )


def over_fitting(report: Report) -> Iterator[Point]:
    """Compare training and validation loss, and see whether the latter has risen."""
    if any("overfit" in name.replace("-", "") for name, _ in _findings(report)):
        return
    found = report.get("gap")
    if not found:
        if report.get("metrics"):
            yield point(
                "Over-fitting", "open", "There is no validation loss: it could not be seen."
            )
        return
    rise = found["last"] - found["lowest"]
    ratio = found["validation"] - found["training"]
    pair = f"{brief(found['training'])} in training, {brief(found['validation'])} in validation"
    if rise > RISE * abs(found["lowest"]):
        kept = (
            "The weights kept are from there."
            if found["step"] == found["lowest_step"]
            else f"The weights kept are of step {found['step']}."
        )
        yield point(
            "Over-fitting",
            "info" if found["step"] == found["lowest_step"] else "warning",
            f"Validation loss was lowest at step {found['lowest_step']} ({brief(found['lowest'])}) and "
            f"rose to {brief(found['last'])}. {kept}",
        )
    elif found["validation"] > GAP_RATIO * found["training"] and ratio > GAP_LEAST:
        text = f"The loss is {pair}: the model knows its training data much better than new data."
        yield point("Over-fitting", "warning", text)
    else:
        yield point("Over-fitting", "good", f"No sign of it: the loss is {pair}.")


def weakest_class(report: Report) -> Iterator[Point]:
    """Name classes that are found much less often than the others."""
    classes = by_class(report.get("metrics") or {})
    recall = {name: row["recall"] for name, row in classes.items() if "recall" in row}
    counted = _supports(report, classes)
    recall = {n: r for n, r in recall.items() if counted.get(n, LEAST_SUPPORT) >= LEAST_SUPPORT}
    if not recall:
        return
    mean = sum(recall.values()) / len(recall)
    weak = sorted((value, name) for name, value in recall.items() if value < WEAK * mean)
    if weak:
        rest = f" and {len(weak) - 3} more" if weak[3:] else ""
        named = ", ".join(f"{name} ({share(value)})" for value, name in weak[:3])
        text = f"Found much less often than the others: {named}{rest}; the mean is {share(mean)}."
        yield point("Classes", "warning", text)


def _supports(report: Report, classes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    given = {name: row["support"] for name, row in classes.items() if "support" in row}
    matrix = (report.get("metrics") or {}).get("confusion_matrix")
    if given or not is_square(matrix, len(classes)):
        return given
    assert isinstance(matrix, list)
    return {name: sum(row) for name, row in zip(classes, matrix, strict=True)}


def calibration(report: Report) -> Iterator[Point]:
    """Judge the expected calibration error."""
    found = report.get("calibration")
    if not isinstance(found, Mapping) or not is_number(found.get("ece")):
        return
    ece = found["ece"]
    level = "good" if ece <= ECE_GOOD else "info" if ece <= ECE_BAD else "warning"
    text = f"Probabilities are off by {share(ece)} on average (ECE, 15 bins)."
    if level != "good" and {"confidence", "accuracy"} <= set(found):
        way = "too sure" if found["confidence"] > found["accuracy"] else "not sure enough"
        text += (
            f" The model is {way}: {share(found['confidence'])} on average, right in "
            f"{share(found['accuracy'])}."
        )
    yield point("Calibration", level, text)


def robustness(report: Report) -> Iterator[Point]:
    """Name the perturbation that costs most, of probes and of views called `NAME@SEVERITY`."""
    drops = sorted(_drops(report), key=lambda each: -each[0])
    if not drops:
        if report.get("metrics") and not _looks_at_robustness(report):
            text = "The model was not tested on perturbed inputs."
            yield point("Robustness", "open", text, "sft-engine probe RUN --with NAME")
        return
    drop, name, clean, value, metric = drops[0]
    cost = drop if 0 <= clean <= 1 else drop / (abs(clean) or 1)
    level = "good" if cost <= DROP_SMALL else "info" if cost <= DROP_LARGE else "warning"
    kinds = len({each[1].partition("@")[0] for each in drops})
    tried = f"Of {kinds} perturbations, {name} costs most:" if kinds > 1 else f"Under {name},"
    yield point(
        "Robustness",
        level,
        f"{tried} {metric} goes from {brief(clean)} to {brief(value)}.",
    )


Drop = tuple[float, str, float, float, str]
"""How much worse, in which view, from what, to what, of which metric."""


def _drops(report: Report) -> Iterator[Drop]:
    task, metrics = report.get("task") or {}, report.get("metrics") or {}
    metric = task.get("metric", "")
    sign = 1 if task.get("direction", "max") == "max" else -1
    probes = {n: p for n, p in (report.get("probes") or {}).items() if _is_curve(p)}
    for name, probe in probes.items():
        clean = probe["values"][0]
        for severity, value in zip(probe["severities"][1:], probe["values"][1:], strict=False):
            if is_number(clean) and is_number(value):
                drop = sign * (clean - value)
                of = str(probe.get("metric") or metric)
                yield drop, f"{name}@{severity}", clean, float(value), of
    for name, values in (report.get("views") or {}).items():
        of_probe = name.partition("@")[0] in probes
        if "@" in name and not of_probe and is_number(values.get(metric)):
            clean = metrics.get(metric)
            if isinstance(clean, (int, float)):
                yield sign * (clean - values[metric]), name, clean, values[metric], metric


def _is_curve(probe: Any) -> bool:
    return (
        isinstance(probe, Mapping)
        and isinstance(probe.get("values"), list)
        and isinstance(probe.get("severities"), list)
        and len(probe["values"]) > 1
    )


def _looks_at_robustness(report: Report) -> bool:
    """Say whether a section shows a curve over a severity."""
    return any(
        block.get("kind") == "lines"
        and "severity" in str((block.get("x") or {}).get("label", "")).lower()
        for block in _blocks(report)
    )


def diagnosis(report: Report) -> Iterator[Point]:
    """Count the findings of a diagnosis, and name the worst."""
    found = _findings(report)
    if not found:
        if not any(block.get("kind") == "findings" for block in _blocks(report)):
            if report.get("metrics"):
                text = "Its training was not examined for illnesses."
                yield point("Diagnosis", "open", text, "sft-engine diagnose RUN")
        else:
            yield point("Diagnosis", "good", "The diagnosis found nothing.")
        return
    worst = next((level for level in _LEVELS if any(level == each for _, each in found)), "info")
    names = ", ".join(f"{name} ({level})" for name, level in found)
    yield point("Diagnosis", worst, f"Found in training: {names}.")


def _findings(report: Report) -> list[tuple[str, str]]:
    return [
        (str(each.get("name", "")), str(each.get("level", "info")))
        for block in _blocks(report)
        if block.get("kind") == "findings"
        for each in block.get("findings") or ()
        if isinstance(each, Mapping)
    ]


def sections_of(report: Report) -> list[Mapping[str, Any]]:
    """Return the sections of a report that are sections."""
    given = report.get("sections")
    return [s for s in given if isinstance(s, Mapping)] if isinstance(given, list) else []


def _blocks(report: Report) -> Iterator[Mapping[str, Any]]:
    for section in sections_of(report):
        for block in section.get("blocks") or ():
            if isinstance(block, Mapping):
                yield block


def data(report: Report) -> Iterator[Point]:
    """Repeat what was noticed in the data: at once if the test may be partly memory."""
    noticed = [str(each.get("message", "")) for each in report.get("preflight") or ()]
    leaks = [message for message in noticed if any(words in message for words in _LEAK)]
    for message in leaks:
        yield point("Leakage", "warning", message)
    rest = len(noticed) - len(leaks)
    if rest:
        one = "one remark was" if rest == 1 else f"{rest} remarks were"
        yield point("Data", "info", f"{one.capitalize()} made on the data; see below.")
