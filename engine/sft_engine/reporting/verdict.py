"""The verdict of a run in plain words: rules over report.json, written down in docs/report.md.

Each rule looks at one matter and says at most a sentence or two about it, with a level: `good`, `info`,
`warning`, `serious`, or `open` for what nobody has looked at. A rule whose figures are missing is silent,
or says that it is open. The headline follows from the worst level alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sft_engine.reporting.curves import is_number
from sft_engine.reporting.verdict_matters import (
    baseline,
    calibration,
    data,
    diagnosis,
    over_fitting,
    robustness,
    sections_of,
    weakest_class,
)
from sft_engine.reporting.wording import Point, brief, point

Report = Mapping[str, Any]
Rule = Callable[[Report], Iterator[Point]]

HEADLINES = {
    "serious": "Do not rely on this result before the serious points below are settled.",
    "warning": "Usable with care: something below speaks against it.",
    "good": "Nothing that was looked at speaks against this result.",
}
ORDER = ("serious", "warning", "good", "info", "open")
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_SMALL_SET = 0.1


def verdict(report: Report) -> dict[str, Any]:
    """Return `headline` and `points` of a run's report; a point is `{"topic", "level", "text", "command"}`."""
    points = [each for rule in RULES for each in _applied(rule, report)]
    points.sort(key=lambda each: ORDER.index(each["level"]))
    return {"headline": headline(report, points), "points": points}


def _applied(rule: Rule, report: Report) -> list[Point]:
    """Apply a rule; what a component wrote in another shape than it should must not lose the run."""
    try:
        return list(rule(report))
    except MALFORMED as error:
        name = rule.__name__.replace("_", " ")
        text = f"The rule on {name} could not read report.json: {type(error).__name__}: {error}."
        return [point("Report", "info", text)]


def given_verdict(report: Report) -> dict[str, Any]:
    """Return the verdict that a study or a comparison brings: in its own words, or what sections say."""
    given = report.get("verdict")
    points = list(declared(report))
    if isinstance(given, Mapping):
        for each in given.get("points") or ():
            if isinstance(each, Mapping) and each.get("level") in ORDER:
                texts = (str(each.get(key) or "") for key in ("topic", "level", "text", "command"))
                points.append(point(*texts))
        given = given.get("headline")
    elif isinstance(given, Sequence) and not isinstance(given, str):
        given = " ".join(map(str, given))
    summaries = (str(s.get("summary") or "") for s in sections_of(report))
    return {"headline": str(given or next(filter(None, summaries), "")), "points": points}


def headline(report: Report, points: list[Point]) -> str:
    """Say the result in one sentence, and in another what to make of it."""
    levels = {each["level"] for each in points}
    worst = next((level for level in ("serious", "warning") if level in levels), "good")
    if report.get("status"):
        return "This run has not ended: it has no result yet."
    value, metric = _value(report)
    if not metric:
        return "Nothing was evaluated: there is no result to judge."
    return f"{_result(report, metric, value)} {HEADLINES[worst]}"


def _result(report: Report, metric: str, value: float) -> str:
    found = report.get("interval") or {}
    sure = f" (95\u00a0% interval {brief(found['low'])} to {brief(found['high'])})" if found else ""
    return f"{metric.capitalize()} {brief(value)}{sure} on {_examples(report)}."


def _examples(report: Report) -> str:
    split = report.get("split", "")
    count = (report.get("examples") or {}).get(split)
    return f"{count:,} {split} examples" if count else f"the {split} split"


def _value(report: Report) -> tuple[float, str]:
    metrics = report.get("metrics") or {}
    metric = (report.get("task") or {}).get("metric", "")
    if not is_number(metrics.get(metric)):
        names = [n for n, v in metrics.items() if is_number(v) and "/" not in n]
        metric = names[0] if names else ""
    return float(metrics.get(metric, math.nan)), metric


# --- Rules ---------------------------------------------------------------------------------------


def ended(report: Report) -> Iterator[Point]:
    """Say so if the run did not end."""
    if report.get("status"):
        yield point("The run", "serious", f"It is {report['status']}. {report.get('message', '')}")


def broken(report: Report) -> Iterator[Point]:
    """Name metrics that are NaN."""
    names = [
        name
        for name, value in (report.get("metrics") or {}).items()
        if isinstance(value, float) and math.isnan(value) and "/" not in name
    ]
    if names:
        yield point("Result", "serious", f"Not a number: {', '.join(names)}.")


def certainty(report: Report) -> Iterator[Point]:
    """Say how far the test set alone lets the figure be from the truth."""
    found, (_, metric) = report.get("interval") or {}, _value(report)
    if not metric:
        return
    if not found:
        text = f"How sure {metric} is on a set of this size was not computed."
        yield point("How sure", "open", text, "sft-engine compare RUN OTHER-RUN")
        return
    low, high = found["low"], found["high"]
    width = high - low
    level = "warning" if metric != "mse" and width > _SMALL_SET else "good"
    advice = " The set is small: differences below that mean nothing." if level == "warning" else ""
    yield point(
        "How sure",
        level,
        f"With {found['examples']:,} examples, {metric} is between {brief(low)} and {brief(high)} "
        f"with 95\u00a0% certainty ({found['method']} interval).{advice}",
    )


def selection(report: Report) -> Iterator[Point]:
    """Warn where the split that selected the weights is the one that judges them."""
    if report.get("split") == "validation" and report.get("best"):
        yield point(
            "Selection",
            "warning",
            "There is no test split: the validation split chose the weights and judges them, so the "
            "figure is too good.",
        )


def seeds(report: Report) -> Iterator[Point]:
    """Say that one run shows nothing of what another seed would give."""
    if _value(report)[1]:
        yield point(
            "Seeds",
            "open",
            "One seed was trained: how much another seed or another draw of the training data would "
            "change is not known.",
            f"sft-engine stability {report.get('recipe') or 'RECIPE'}",
        )


def comparison(report: Report) -> Iterator[Point]:
    """Say that nothing was compared."""
    if _value(report)[1]:
        text = "Whether it is better than another run was not tested."
        yield point("Comparison", "open", text, "sft-engine compare RUN OTHER-RUN")


def declared(report: Report) -> Iterator[Point]:
    """Take over what sections say for the verdict."""
    for section in sections_of(report):
        for each in section.get("verdict") or ():
            if isinstance(each, Mapping) and each.get("level") in ORDER:
                topic = str(each.get("topic") or section.get("title", ""))
                yield point(
                    topic, each["level"], str(each.get("text", "")), each.get("command", "")
                )


RULES: tuple[Rule, ...] = (
    ended,
    broken,
    baseline,
    certainty,
    selection,
    over_fitting,
    weakest_class,
    calibration,
    robustness,
    diagnosis,
    data,
    declared,
    seeds,
    comparison,
)
