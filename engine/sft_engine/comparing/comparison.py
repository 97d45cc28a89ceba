"""Compare finished runs and studies: read, test, judge, and put it all in one result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sft_engine.comparing.answers import MAIN, measure_of, value_of
from sft_engine.comparing.design import is_crossed
from sft_engine.comparing.evidence import Evidence, clean_on, values_of, weigh
from sft_engine.comparing.many import ManyResult, compare_many
from sft_engine.comparing.over_runs import Question
from sft_engine.comparing.runs import (
    CLEAN,
    Given,
    Group,
    LeftOut,
    read_groups,
    require_same_examples,
    said_of,
    same_rows,
)
from sft_engine.comparing.spread import Spread, compare_spread
from sft_engine.comparing.verdicts import Verdict, judge, overall
from sft_engine.errors import RecipeError
from sft_engine.metrics import direction_of
from sft_engine.records import facts_in_common
from sft_engine.significance.agreement import pairwise_disagreement
from sft_engine.significance.paired import holm
from sft_engine.significance.spread import Summary, summary

VIEW_RESAMPLES = 2_000
"""Resamples on a probe view, of which there are many."""

ROUNDING = 1e-4

NAMED = 3
"""Runs that are left out and named one by one."""


@dataclass(frozen=True)
class GroupResult:
    """What one group scored.

    Args:
        name: Of the group.
        runs: Its folders.
        study: Whether it is a study.
        values: The metric of each run.
        summary: Mean, spread and worst of them.
        disagreement: Share of examples on which two of its runs differ; NaN for a single run.
        left_out: Runs of the study that count in no figure: stopped as hopeless, failed, not finished.
    """

    name: str
    runs: tuple[str, ...]
    study: bool
    values: tuple[float, ...]
    summary: Summary
    disagreement: float
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class PairResult:
    """Two groups: what the data says, and what follows."""

    evidence: Evidence
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Everything that `sft-engine compare` found.

    Args:
        verdict: In words, on the view that was asked for.
        metric: The metric.
        larger_is_better: Which way it is better.
        split: On which split.
        view: On which view.
        examples: How many examples that view has; 0 if their predictions are not there.
        level: Of the whole comparison; intervals of several pairs are wider accordingly (Bonferroni).
        margin: Differences up to this size do not matter; None if nobody said so.
        groups: What each scored.
        pairs: Each two of them.
        many: All at once, where there are three or more.
        spread: Whether they scatter alike, where they have runs enough.
        views: Each two on every probe view that all runs have.
        notes: What the reader has to know.
        facts: What run.json says alike of all runs: versions, device, data.
        sections: The same for a report (`sft_engine.sections`).
    """

    verdict: str
    metric: str
    larger_is_better: bool
    split: str
    view: str
    examples: int
    level: float
    margin: float | None
    groups: tuple[GroupResult, ...]
    pairs: tuple[PairResult, ...]
    many: ManyResult | None
    spread: Spread | None
    views: tuple[PairResult, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    sections: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists; `sections` at the end."""
        *names, last = [group.name for group in self.groups]
        title = f"{', '.join(names)} and {last}"
        # In a report, examples are counted by split.
        counts = {self.split: self.examples}
        return {"kind": "comparison", "title": title, **asdict(self), "examples": counts}


def compare_runs(
    given: Given,
    *,
    metric: str = "",
    view: str = "",
    margin: float | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Comparison:
    """Compare runs, groups of runs, or studies; `sft_engine.compare` says how.

    Raises:
        SftError: a folder cannot be read, runs did not predict the same examples, or there is no such
            metric or view.
    """
    _check_options(margin, level, resamples)
    groups = read_groups(given)
    require_same_examples(groups)
    where = view or CLEAN
    shared = _shared_views(groups)
    if where not in shared:
        raise RecipeError(
            f"not every run has the view {where!r}: those of all are {', '.join(shared)}"
        )
    name = metric or _main_metric(groups, where)
    _require_metric(groups, where, name)
    question = Question(name, _larger_is_better(name), level, resamples)
    alpha = 1 - level
    pairs = _judged(groups, [where], question, alpha, margin)
    others = [each for each in shared if each != where] if not view else []
    others = [each for each in others if _has_metric(groups, each, name)]
    quick = replace(question, resamples=min(resamples, VIEW_RESAMPLES))
    scores = {group.name: values_of(group, where, name) for group in groups}
    many = compare_many(groups, where, question, alpha)
    found = Comparison(
        verdict=overall(
            _ranked(scores, question),
            [(each.evidence, each.verdict) for each in pairs],
            test=many.sentence if many else "",
        )
        + _left_out(groups),
        metric=name,
        larger_is_better=question.larger_is_better,
        split=groups[0].members[0].split,
        view=where,
        examples=_examples(groups, where),
        level=level,
        margin=margin,
        groups=tuple(_described(group, scores[group.name], where, question) for group in groups),
        pairs=pairs,
        many=many,
        spread=compare_spread(scores, alpha, shared=any(is_crossed(group) for group in groups)),
        views=_judged(groups, others, quick, alpha, None),
        notes=tuple(_notes(groups, where, question)),
        facts=facts_in_common(member.folder for group in groups for member in group.members),
    )
    from sft_engine.comparing.shown import sections_of

    return replace(found, sections=sections_of(found, _curves(groups, [CLEAN, *others], name)))


def _check_options(margin: float | None, level: float, resamples: int) -> None:
    if margin is not None and not 0 < margin < math.inf:
        raise RecipeError(f"margin {margin:g}: must be above 0, in the units of the metric")
    if not 0.5 < level < 1:  # noqa: PLR2004
        raise RecipeError(f"level {level:g}: must be above 0.5 and below 1, such as 0.95")
    if resamples < 100:  # noqa: PLR2004
        raise RecipeError(f"{resamples} resamples: must be 100 at least; 10000 are usual")


# --- Metric and views ----------------------------------------------------------------------------


def _shared_views(groups: Sequence[Group]) -> list[str]:
    members = [member for group in groups for member in group.members]
    return [v for v in members[0].views if all(v in member.views for member in members)]


def _main_metric(groups: Sequence[Group], view: str) -> str:
    """Return the main metric of the task, or the first that the runs recorded."""
    first = groups[0].members[0]
    answers = first.answers(CLEAN)
    if answers is not None:
        return MAIN[answers.kind]
    recorded = first.values.get(view) or first.values[CLEAN]
    return next((name for name in MAIN.values() if name in recorded), next(iter(recorded), ""))


def _has_metric(groups: Sequence[Group], view: str, metric: str) -> bool:
    return all(
        metric in member.values.get(view, {}) or _computable(member.answers(view), metric)
        for group in groups
        for member in group.members
    )


def _computable(answers: Any, metric: str) -> bool:
    return answers is not None and measure_of(metric, answers.kind) is not None


def _require_metric(groups: Sequence[Group], view: str, metric: str) -> None:
    if _has_metric(groups, view, metric):
        return
    members = [member for group in groups for member in group.members]
    recorded = [set(member.values.get(view, {})) for member in members]
    shared = sorted(set.intersection(*recorded))
    where = "" if view == CLEAN else f" on {view}"
    raise RecipeError(
        f"not every run has the metric {metric!r}{where}: all of them have {', '.join(shared) or 'none'}"
    )


def _larger_is_better(metric: str) -> bool:
    try:
        return direction_of(metric) == "max"
    except RecipeError as error:
        raise RecipeError(
            f"nobody knows whether more or less of the metric {metric!r} is better: choose another with "
            "--metric"
        ) from error


def _examples(groups: Sequence[Group], view: str) -> int:
    answers = groups[0].members[0].answers(view)
    return len(answers.rows) if answers else 0


# --- Tests ---------------------------------------------------------------------------------------


def _judged(
    groups: Sequence[Group],
    views: Sequence[str],
    question: Question,
    alpha: float,
    margin: float | None,
) -> tuple[PairResult, ...]:
    """Weigh and judge each two groups on each of these views, all as one family of tests."""
    pairs = list(itertools.combinations(groups, 2))
    if not views:
        return ()
    # Simultaneous intervals by Bonferroni go with p-values adjusted by Holm.
    level = 1 - alpha / (len(pairs) * len(views))
    strict = replace(question, level=level)
    weighed = [weigh(one, two, view, strict) for view in views for one, two in pairs]
    adjusted = holm([each.p for each in weighed])
    return tuple(
        PairResult(each, judge(each, question, p=p, alpha=alpha, margin=margin))
        for each, p in zip(weighed, adjusted, strict=True)
    )


def _ranked(scores: dict[str, list[float]], question: Question) -> list[str]:
    """Return names by their means, best first; those without a mean last."""

    def key(name: str) -> tuple[bool, float]:
        mean = float(np.mean(scores[name]))
        return math.isnan(mean), -mean if question.larger_is_better else mean

    return sorted(scores, key=key)


# --- What the result shows -----------------------------------------------------------------------


def _described(group: Group, scores: Sequence[float], view: str, question: Question) -> GroupResult:
    return GroupResult(
        group.name,
        tuple(str(member.folder) for member in group.members),
        group.study,
        tuple(scores),
        summary(scores, larger_is_better=question.larger_is_better),
        _disagreement(group, view),
        group.left_out,
    )


def _disagreement(group: Group, view: str) -> float:
    answers = [member.answers(view) for member in group.members]
    if len(answers) < 2 or not same_rows(answers):  # noqa: PLR2004
        return math.nan
    chosen = [each.chosen for each in answers if each is not None and each.kind == "classification"]
    return pairwise_disagreement(np.array(chosen)) if len(chosen) == len(answers) else math.nan


def _curves(
    groups: Sequence[Group], views: Sequence[str], metric: str
) -> dict[str, dict[str, float]]:
    """Return the mean of the metric by view, then by group, for severity curves.

    A probe looks at some examples of the split: the start of its curve, `PROBE@0`, is the clean value on these.
    """
    curves = {
        view: {group.name: float(np.mean(values_of(group, view, metric))) for group in groups}
        for view in views
        if _has_metric(groups, view, metric)
    }
    starts: dict[str, dict[str, float]] = {}
    for view in curves:
        probe, at, _ = view.rpartition("@")
        if at and f"{probe}@0" not in {*curves, *starts}:
            starts[f"{probe}@0"] = {
                group.name: float(np.mean([clean_on(m, view, metric) for m in group.members]))
                for group in groups
            }
    return starts | curves


def _notes(groups: Sequence[Group], view: str, question: Question) -> list[str]:
    notes = [_who_is_left_out(group) for group in groups if group.left_out]
    notes += [
        f"{member.folder} was stopped as hopeless ({member.hopeless}): it did not train to its end."
        for group in groups
        for member in group.members
        if member.hopeless
    ]
    if len({member.data for group in groups for member in group.members[:1]}) > 1:
        notes.append("Not all were trained on the same examples.")
    notes += [_odd(m, view, question) for group in groups for m in group.members]
    if not _examples(groups, view):
        notes.append(
            f"There are no predictions of the view {view}: nothing can be said about other examples."
        )
    return [note for note in notes if note]


def _who_is_left_out(group: Group) -> str:
    odd = group.left_out
    named = "; ".join(
        f"{each.run} {each.why}{f' ({each.reason})' if each.reason else ''}" for each in odd[:NAMED]
    )
    more = f"; and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
    return (
        f"{group.name}: {len(odd)} of {group.planned} runs left out, so its figures are those of runs that "
        f"train to their end: {named}{more}."
    )


def _left_out(groups: Sequence[Group]) -> str:
    """Say in the verdict which groups lack runs: theirs are the figures of survivors."""
    parts = [
        f"{len(group.left_out)} of {group.planned} runs of {group.name} ({said_of(group.left_out)})"
        for group in groups
        if group.left_out
    ]
    return f" Left out: {', '.join(parts)}." if parts else ""


def _odd(member: Any, view: str, question: Question) -> str:
    """Say so if a run's predictions give another value than the run recorded."""
    answers, recorded = member.answers(view), member.values.get(view, {}).get(question.metric)
    measure = measure_of(question.metric, answers.kind) if answers else None
    if recorded is None or measure is None:
        return ""
    value = value_of(measure, answers)
    if math.isclose(value, recorded, rel_tol=ROUNDING, abs_tol=ROUNDING) or math.isnan(recorded):
        return ""
    return (
        f"{member.folder}: report.json says {question.metric} {recorded:.4f}, its predictions give "
        f"{value:.4f}; one of both was changed."
    )
