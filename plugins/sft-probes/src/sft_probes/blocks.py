"""What a section of a probe shows, made of plain numbers: the curve, its table, a sentence, examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sft_engine import sections
from sft_engine.metrics import direction_of
from sft_engine.significance.intervals import wilson

if TYPE_CHECKING:
    from sft_engine.sections import Block

_SHARES = {"accuracy", "balanced-accuracy", "f1", "precision", "recall"}
"""Metrics between 0 and 1, whose axis begins and ends there."""
_HEADS = {
    "drop": "drop",
    "changed": "predictions changed",
    "moved": "predictions moved by",
    "success-rate": "attacks that succeed",
    "perturbed": "words replaced",
    "queries": "queries",
    "symmetric-kl": "symmetric KL",
    "lipschitz": "slope of the logits, mean",
    "lipschitz-max": "slope, largest",
}


@dataclass(frozen=True)
class Curve:
    """A metric by severity, the clean value first.

    Args:
        metric: Its name.
        axis: What the severities are.
        split: Which was looked at.
        examples: How many of it.
        seed: Of the choice of examples and of all changes.
        severities: Numbers, or names of kinds; the first is 0.
        values: Of the metric; None where there are no targets.
        more: Further numbers of each severity by name: `drop`, `changed` and so on.
    """

    metric: str
    axis: str
    split: str
    examples: int
    seed: int
    severities: Sequence[float | str]
    values: Sequence[float | None]
    more: Sequence[Mapping[str, float]]

    @property
    def numeric(self) -> bool:
        """Whether the severities are numbers, so that there is a curve."""
        return all(isinstance(each, (int, float)) for each in self.severities)

    @property
    def names(self) -> list[str]:
        """The further numbers that any severity has, in order."""
        return list(dict.fromkeys(name for each in self.more for name in each))

    def sorted(self) -> Curve:
        """Return the same by rising severity, which may begin below 0."""
        places = sorted(range(len(self.severities)), key=lambda i: float(self.severities[i]))
        return replace(
            self,
            severities=[self.severities[i] for i in places],
            values=[self.values[i] for i in places],
            more=[self.more[i] for i in places],
        )

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values, by the names of this class."""
        return {
            "split": self.split,
            "examples": self.examples,
            "seed": self.seed,
            "metric": self.metric,
            "severity": self.axis,
            "severities": list(self.severities),
            "values": [_finite(value) for value in self.values],
            **{name: [_finite(each.get(name)) for each in self.more] for name in self.names},
        }


def curve_blocks(curve: Curve) -> list[Block]:
    """Return the curve (bars where severities are kinds) and its table."""
    return [_chart(curve), _table(curve)]


def _chart(curve: Curve) -> Block:
    title = f"{_capital(curve.metric)} by {curve.axis}"
    if not curve.numeric:
        labels = ["clean", *map(str, curve.severities[1:])]
        return sections.bars(title, labels, [_finite(v) for v in curve.values], label=curve.metric)
    curve = curve.sorted()
    series = [_banded(curve)]
    shares = curve.metric in _SHARES
    if shares and "changed" in curve.names:
        share = [each.get("changed") for each in curve.more]
        series.append(sections.one_series("predictions changed", share))
    return sections.lines(
        title,
        x=(curve.axis, [float(each) for each in curve.severities]),
        y="share" if len(series) > 1 else curve.metric,
        series=series,
        y_range=(0.0, 1.0) if shares else None,
    )


def _banded(curve: Curve) -> dict[str, Any]:
    """Return the metric's curve; around accuracy, a share of examples, with Wilson's 95 % interval."""
    values = [_finite(value) for value in curve.values]
    if curve.metric != "accuracy" or None in values:
        return sections.one_series(curve.metric, values)
    count = curve.examples
    bands = [wilson(value * count, count) for value in values if value is not None]
    return sections.one_series(
        curve.metric, values, [band.low for band in bands], [band.high for band in bands]
    )


def _table(curve: Curve) -> Block:
    columns = [curve.axis, curve.metric, *(_HEADS.get(name, name) for name in curve.names)]
    rows = [
        [
            "clean" if place == 0 else severity,
            _finite(value),
            *(_finite(more.get(name)) for name in curve.names),
        ]
        for place, (severity, value, more) in enumerate(
            zip(curve.severities, curve.values, curve.more, strict=True)
        )
    ]
    note = (
        f"{curve.examples} examples of the {curve.split} split, the same for every model "
        f"(seed {curve.seed}). drop: how much worse than clean. Bands of accuracy: Wilson's 95 %."
    )
    return sections.table(f"{_capital(curve.metric)} and changes", columns, rows, note=note)


def curve_summary(curve: Curve) -> str:
    """Return one sentence: from where to where the metric goes, and how many predictions change."""
    if len(curve.severities) == 1:
        return "No severity was asked for."
    place = _worst(curve)
    severity, value, more = curve.severities[place], curve.values[place], curve.more[place]
    at = f"{curve.axis} {severity:g}" if not isinstance(severity, str) else f"'{severity}'"
    parts = []
    if value is not None and curve.values[0] is not None:
        verb = _verb(curve.metric, curve.values[0], value)
        parts.append(f"{_capital(curve.metric)} {verb} at {at}")
    if "changed" in more:
        parts.append(f"{more['changed']:.1%} of the predictions change there")
    elif "moved" in more:
        parts.append(f"predictions move by {more['moved']:.4g} there")
    return "; ".join(parts) + "."


def _verb(metric: str, before: float, after: float) -> str:
    if math.isnan(after):
        return f"goes from {before:.3f} to NaN"
    if f"{before:.3f}" == f"{after:.3f}":
        return f"stays at {before:.3f}"
    rises = after > before
    worse = "" if rises == (direction_of(metric) == "min") else ", which is better,"
    return f"{'rises' if rises else 'falls'} from {before:.3f} to {after:.3f}{worse}"


def _worst(curve: Curve) -> int:
    """Return the place of the largest drop, or of the most changes; NaN is worst of all."""
    name = "drop" if "drop" in curve.names else curve.names[0]

    def badness(place: int) -> float:
        found = curve.more[place].get(name, -math.inf)
        return math.inf if math.isnan(found) else found

    return max(range(1, len(curve.severities)), key=badness)


def affected_block(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return the examples that were most affected, or a sentence that there are none."""
    if not rows:
        return [sections.text("No prediction becomes worse and another one.")]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "image"))
    return [sections.examples("Examples most affected", columns, rows)]


def _finite(value: float | None) -> float | None:
    """Return the value, None for NaN: it has no place in a chart."""
    return None if value is None or not math.isfinite(value) else value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
