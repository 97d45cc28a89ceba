"""A comparison as sections of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft_engine import sections
from sft_engine.comparing.runs import CLEAN
from sft_engine.comparing.verdicts import SHORT, of_views

if TYPE_CHECKING:
    from sft_engine.comparing.comparison import Comparison, PairResult

Curves = Mapping[str, Mapping[str, float]]
Cell = str | float | None

PAIR_COLUMNS = (
    "pair",
    "difference",
    "low",
    "high",
    "speaks of",
    "test",
    "p",
    "p adjusted",
    "verdict",
)


def sections_of(found: Comparison, curves: Curves) -> list[dict[str, Any]]:
    """Return the sections of a comparison.

    Args:
        found: The comparison.
        curves: Mean of the metric by view, then by group.
    """
    report: dict[str, Any] = {}
    sections.add_section(
        report, "comparison", "Which is better", _main_blocks(found), summary=found.verdict
    )
    if found.spread is not None:
        block = sections.table(
            f"Standard deviations of {found.metric} over runs",
            ["wider : narrower", "ratio", "low", "high", "ratio to be shown", "runs needed"],
            [
                [
                    f"{pair.wider} : {pair.narrower}",
                    *_numbers(pair.ratio.value, pair.ratio.low, pair.ratio.high, pair.needed_ratio),
                    pair.needed_runs,
                ]
                for pair in found.spread.pairs
            ],
            note="Runs needed: in each group, to find a true ratio of this size in four of five studies.",
        )
        sections.add_section(
            report, "comparison-spread", "Spread over runs", [block], summary=found.spread.sentence
        )
    if found.many is not None:
        sections.add_section(
            report,
            "comparison-many",
            "All at once",
            _many_blocks(found),
            summary=found.many.sentence,
        )
    if found.views:
        judged = [(each.evidence, each.verdict) for each in found.views]
        table = sections.table(
            f"{found.metric} on the probes",
            ["view", *PAIR_COLUMNS],
            [[each.evidence.view, *_pair_row(each)] for each in found.views],
            note="All p-values of this table are adjusted together (Holm).",
        )
        blocks = [*_severity_curves(found.metric, curves), table]
        sections.add_section(
            report, "comparison-probes", "On the probes", blocks, summary=of_views(judged)
        )
    result: list[dict[str, Any]] = report["sections"]
    return result


def _main_blocks(found: Comparison) -> list[dict[str, Any]]:
    names = [f"{p.evidence.first} - {p.evidence.second}" for p in found.pairs]
    limits = [p.evidence.limits for p in found.pairs]
    gaps = any(group.left_out for group in found.groups)
    blocks = [
        sections.table(
            f"{found.metric} by group",
            [
                "group",
                "runs",
                *(["left out"] if gaps else []),
                "mean",
                "sd",
                "worst",
                "CVaR 20 %",
                "disagreement",
            ],
            [
                [
                    group.name,
                    group.summary.runs,
                    *([len(group.left_out)] if gaps else []),
                    *_numbers(
                        group.summary.mean,
                        group.summary.sd,
                        group.summary.worst,
                        group.summary.cvar,
                        group.disagreement,
                    ),
                ]
                for group in found.groups
            ],
            note="CVaR: mean of the worst fifth of the runs. Disagreement: share of examples on which two "
            "runs of the group differ.",
        ),
        sections.bars(
            f"Difference of {found.metric}",
            names,
            _numbers(*(p.evidence.difference for p in found.pairs)),
            label=f"difference of {found.metric}",
            low=_numbers(*(math.nan if each is None else each.low for each in limits)),
            high=_numbers(*(math.nan if each is None else each.high for each in limits)),
        ),
        sections.table("Each two", PAIR_COLUMNS, [_pair_row(pair) for pair in found.pairs]),
        sections.table(
            "Effect sizes",
            ["pair", "effect size", "value", "low", "high"],
            [
                [name, effect, *_numbers(each.value, each.low, each.high)]
                for name, pair in zip(names, found.pairs, strict=True)
                for effect, each in pair.evidence.effects.items()
            ],
        ),
    ]
    changes = [(n, p.evidence.changes) for n, p in zip(names, found.pairs, strict=True)]
    if any(each for _, each in changes):
        columns = ["churn", "negative_flips", "positive_flips", "least"]
        blocks.append(
            sections.table(
                "If the first takes the place of the second",
                ["pair", "churn", "negative flips", "positive flips", "least churn"],
                [[name, *(each[key] for key in columns)] for name, each in changes if each],
                note="Negative flips: examples that were right and are wrong now.",
            )
        )
    texts = [pair.verdict.sentence for pair in found.pairs] if len(found.pairs) > 1 else []
    return blocks + [sections.text(each) for each in [*texts, *found.notes]]


def _pair_row(pair: PairResult) -> list[Cell]:
    evidence, verdict = pair.evidence, pair.verdict
    limits = evidence.limits
    low, high = (math.nan, math.nan) if limits is None else (limits.low, limits.high)
    test = evidence.over_runs.test if evidence.over_runs else evidence.test_examples
    said = SHORT[verdict.code]
    return [
        f"{evidence.first} - {evidence.second}",
        *_numbers(evidence.difference, low, high),
        evidence.scope or "nothing else",
        test,
        *_numbers(evidence.p, verdict.p),
        f"{verdict.better}: {said}" if verdict.better else said,
    ]


def _many_blocks(found: Comparison) -> list[dict[str, Any]]:
    assert found.many is not None
    names = [group.name for group in found.groups]
    ranks = _numbers(*found.many.friedman.mean_ranks)
    return [
        sections.bars("Mean ranks, 1 being best", names, ranks, label="mean rank"),
        sections.matrix(
            "Nemenyi: p of each two",
            names,
            names,
            [_numbers(*row) for row in found.many.nemenyi.p],
        ),
        sections.text(
            f"Mean ranks that are more than {found.many.nemenyi.critical_difference:.3g} apart differ."
        ),
    ]


def _severity_curves(metric: str, curves: Curves) -> list[dict[str, Any]]:
    """Return one chart a probe that has severities, its views being named `PROBE@SEVERITY`."""
    probes: dict[str, dict[float, str]] = {}
    for view in curves:
        probe, at, severity = view.rpartition("@")
        if at and _is_number(severity):
            probes.setdefault(probe, {})[float(severity)] = view
    names = list(curves[CLEAN]) if CLEAN in curves else []
    blocks = []
    for probe, views in probes.items():
        places = dict(sorted(views.items()))
        series = {
            name: _numbers(*(curves[view].get(name, math.nan) for view in places.values()))
            for name in names
        }
        if names and len(places) > 1:
            x = ("severity", list(places))
            blocks.append(sections.lines(f"{metric} under {probe}", x=x, y=metric, series=series))
    return blocks


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _numbers(*values: float) -> list[float | None]:
    """Return what JSON can hold: nothing where there is no number."""
    return [value if math.isfinite(value) else None for value in values]
