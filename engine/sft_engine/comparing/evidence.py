"""What the data says about two groups of runs, on one view and one metric: no words yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_engine.comparing.answers import Answers, Measure, columns_of, measure_of, value_of
from sft_engine.comparing.design import pairs_of, run_mean
from sft_engine.comparing.over_runs import OverRuns, Question, over_runs_of, student
from sft_engine.comparing.runs import CLEAN, Group, Member, same_rows
from sft_engine.significance import effects
from sft_engine.significance.agreement import churn
from sft_engine.significance.bootstrap import Bootstrap, bootstrap
from sft_engine.significance.intervals import Estimate, difference_of_proportions
from sft_engine.significance.paired import McNemar, mcnemar

Floats = NDArray[np.floating[Any]]

SHARES = {"accuracy", "exact-match"}
"""Metrics that are shares of right examples, where one example is one trial."""


@dataclass(frozen=True)
class Evidence:
    """First group against second.

    Args:
        first: Name of the one.
        second: Name of the other.
        view: On which view.
        values: Mean of the metric over each one's runs.
        runs: How many runs each has.
        difference: First minus second.
        examples: Paired examples; 0 where there are no predictions.
        over_examples: Limits for other examples, with these very models; None if unknown.
        p_examples: Two-sided, of the same question.
        test_examples: Which test gave it.
        mcnemar: Where both are single runs whose answers are right or wrong.
        over_runs: Where both have several runs.
        limits: What the verdict rests on: over examples, over runs, or over both.
        limits_90: The same at the level of two one-sided tests, for margins.
        scope: What `limits` speak of: `examples`, `runs`, `examples and runs`, or nothing.
        effects: Effect sizes by name.
        changes: Churn and flips from second to first, of single runs.
        same_answers: Whether all answers are equal, run by run.
    """

    first: str
    second: str
    view: str
    values: tuple[float, float]
    runs: tuple[int, int]
    difference: float
    examples: int
    over_examples: Estimate | None
    p_examples: float
    test_examples: str
    mcnemar: McNemar | None
    over_runs: OverRuns | None
    limits: Estimate | None
    limits_90: Estimate | None
    scope: str
    effects: dict[str, Estimate]
    changes: dict[str, float]
    same_answers: bool

    @property
    def p(self) -> float:
        """The p that the verdict rests on: over runs where there are several, else over examples."""
        return self.over_runs.p if self.over_runs is not None else self.p_examples


def values_of(group: Group, view: str, metric: str) -> list[float]:
    """Return the metric of each run: from its predictions, else as the run recorded it; else NaN."""
    return [_value(member, view, metric) for member in group.members]


def _value(member: Member, view: str, metric: str) -> float:
    recorded = member.values.get(view, {}).get(metric)
    if recorded is not None:
        return recorded
    answers = member.answers(view)
    measure = None if answers is None else measure_of(metric, answers.kind)
    return math.nan if answers is None or measure is None else value_of(measure, answers)


def clean_on(member: Member, view: str, metric: str) -> float:
    """Return the clean metric of a run on the examples of a view; on all where they are not known."""
    clean, seen = member.answers(CLEAN), member.answers(view)
    measure = measure_of(metric, clean.kind) if clean else None
    if clean is None or seen is None or measure is None or clean.rows == seen.rows:
        return _value(member, CLEAN, metric)
    return value_of(measure, clean.of_rows(seen.rows))


def weigh(first: Group, second: Group, view: str, question: Question) -> Evidence:
    """Gather all evidence on two groups in a view."""
    groups = first, second
    scores = [values_of(group, view, question.metric) for group in groups]
    means = float(np.mean(scores[0])), float(np.mean(scores[1]))
    resampled, count = _over_examples(groups, view, question)
    over_runs = over_runs_of(groups, scores, question)
    single = max(len(group.members) for group in groups) == 1
    test = _mcnemar(groups, view) if single else None
    over_examples, p, name = _judged(resampled, test, question)
    if resampled is None and single:
        over_examples, p, name = _unpaired(groups, means, question, view)
    limits, wide, scope = _combined(means[0] - means[1], resampled, over_runs, question, count)
    if limits is None and over_examples is not None:
        limits, wide, scope = over_examples, None, "examples"
    return Evidence(
        first=first.name,
        second=second.name,
        view=view,
        values=means,
        runs=(len(first.members), len(second.members)),
        difference=means[0] - means[1],
        examples=count,
        over_examples=over_examples,
        p_examples=p,
        test_examples=name,
        mcnemar=test,
        over_runs=over_runs,
        limits=limits,
        limits_90=wide,
        scope=scope,
        effects=_effects(groups, scores, view, question),
        changes=_changes(groups, view) if single else {},
        same_answers=_same_answers(groups, view),
    )


# --- Over examples -------------------------------------------------------------------------------


def _answers(groups: Sequence[Group], view: str) -> list[list[Answers]] | None:
    """Return the answers of every run; None unless all have predicted the same rows."""
    found = [[member.answers(view) for member in group.members] for group in groups]
    if not same_rows([each for group in found for each in group]):
        return None
    return [[each for each in group if each is not None] for group in found]


def _over_examples(
    groups: Sequence[Group], view: str, question: Question
) -> tuple[Bootstrap | None, int]:
    """Resample examples; return also how many there are."""
    answers = _answers(groups, view)
    measure = measure_of(question.metric, answers[0][0].kind) if answers else None
    if answers is None or measure is None:
        return None, 0
    rows, statistic = _difference(answers, measure)
    found = bootstrap(rows, statistic, resamples=question.resamples, seed=question.seed)
    return found, len(rows)


def _difference(
    answers: Sequence[Sequence[Answers]], measure: Measure
) -> tuple[Floats, Callable[[Floats], Floats] | None]:
    """Return rows and a function of their means that is the difference of the groups' metrics."""
    columns = [[columns_of(measure, each) for each in group] for group in answers]
    if measure.linear:
        return np.asarray(np.mean(columns[0], axis=0) - np.mean(columns[1], axis=0)), None
    size, (one, _) = columns[0][0].shape[1], map(len, columns)

    def statistic(means: Floats) -> Floats:
        by_run = measure.finish(means.reshape(len(means), -1, size))
        return np.asarray(by_run[:, :one].mean(axis=1) - by_run[:, one:].mean(axis=1))

    return np.hstack([each for group in columns for each in group]), statistic


def _mcnemar(groups: Sequence[Group], view: str) -> McNemar | None:
    right = _right(groups, view)
    if right is None:
        return None
    one, two = right[0][0], right[1][0]
    return mcnemar(int((one & ~two).sum()), int((two & ~one).sum()))


def _right(groups: Sequence[Group], view: str) -> list[list[NDArray[np.bool_]]] | None:
    """Return which examples each run has right; None where that cannot be said."""
    answers = _answers(groups, view)
    if answers is None or answers[0][0].kind == "regression":
        return None
    if any(each.broken.any() for group in answers for each in group):
        return None
    return [[each.right for each in group if each.right is not None] for group in answers]


def _judged(
    resampled: Bootstrap | None, test: McNemar | None, question: Question
) -> tuple[Estimate | None, float, str]:
    if resampled is None:
        return None, math.nan, ""
    limits = resampled.interval(question.level)
    if test is not None and question.metric in SHARES:
        return limits, test.mid_p, "McNemar mid-p"
    return limits, resampled.p, "paired bootstrap"


def _unpaired(
    groups: Sequence[Group], means: tuple[float, float], question: Question, view: str
) -> tuple[Estimate | None, float, str]:
    """Compare two shares of which only the totals are known."""
    sizes = [_size(group.members[0], view) for group in groups]
    if question.metric not in SHARES or 0 in sizes or any(map(math.isnan, means)):
        return None, math.nan, ""
    (one, two), (m, n) = means, sizes
    limits = difference_of_proportions(one * m, m, two * n, n, question.level)
    pooled = (one * m + two * n) / (m + n)
    error = math.sqrt(pooled * (1 - pooled) * (1 / m + 1 / n))
    p = math.erfc(abs(one - two) / error / math.sqrt(2)) if error else 1.0
    return limits, p, "unpaired proportions"


def _size(member: Member, view: str) -> int:
    """Return over how many examples a view was evaluated, as far as the run says."""
    answers = member.answers(view)
    return len(answers.rows) if answers else member.sizes.get(view, 0)


# --- Over both -----------------------------------------------------------------------------------


def _combined(
    difference: float,
    resampled: Bootstrap | None,
    runs: OverRuns | None,
    question: Question,
    examples: int,
) -> tuple[Estimate | None, Estimate | None, str]:
    """Return the limits that the verdict rests on, those of two one-sided tests, and their scope.

    Squared standard errors over examples and over runs are added, which counts what both share twice: rather
    too wide than too narrow (A. B. Owen, Annals of Applied Statistics 1 (2007) 386-411).
    """
    lower = 2 * question.level - 1
    if runs is None and resampled is None:
        return None, None, ""
    if runs is None:
        assert resampled is not None
        return resampled.interval(question.level), resampled.interval(lower), "examples"
    error, freedom, scope = runs.error, runs.freedom, "runs"
    if resampled is not None and not math.isnan(resampled.error):
        scope = "examples and runs"
        error = math.hypot(runs.error, resampled.error)
        parts = runs.error**4 / runs.freedom + resampled.error**4 / (examples - 1)
        freedom = error**4 / parts if parts > 0 else runs.freedom
    return (
        student(difference, error, freedom, question.level),
        student(difference, error, freedom, lower),
        scope,
    )


# --- Sizes and changes ---------------------------------------------------------------------------


def _effects(
    groups: Sequence[Group], scores: Sequence[Sequence[float]], view: str, question: Question
) -> dict[str, Estimate]:
    """Return effect sizes over examples and, where there are several runs, over runs."""
    found = {}
    answers = _answers(groups, view)
    if answers is not None and question.metric in SHARES and answers[0][0].kind != "regression":
        found["Cohen's h"] = _paired_h(answers, question)
    measure = measure_of(question.metric, answers[0][0].kind) if answers else None
    if measure is not None and measure.linear and not found and answers is not None:
        rows, _ = _difference(answers, measure)
        found["Cohen's dz over examples"] = effects.cohen_dz(rows[:, 0], question.level)
    if min(map(len, scores)) < 2:  # noqa: PLR2004
        return found
    over_runs = {
        "Hedges' g over runs": effects.hedges_g(scores[0], scores[1], question.level),
        "Cliff's delta over runs": effects.cliffs_delta(scores[0], scores[1], question.level),
    }
    if any(
        run_mean(g.members, s).kind != "independent" for g, s in zip(groups, scores, strict=True)
    ):
        # Their limits would take runs that share data or seeds for independent ones.
        over_runs = {
            name: Estimate(each.value, math.nan, math.nan, each.level)
            for name, each in over_runs.items()
        }
    return found | over_runs


def _paired_h(answers: Sequence[Sequence[Answers]], question: Question) -> Estimate:
    """Return Cohen's h of two mean accuracies, with limits by the paired bootstrap."""
    measure = measure_of(question.metric, answers[0][0].kind)
    assert measure is not None
    columns = [np.mean([columns_of(measure, each) for each in group], axis=0) for group in answers]

    def statistic(means: Floats) -> Floats:
        angles = 2 * np.arcsin(np.sqrt(means.clip(0, 1)))
        return np.asarray(angles[:, 0] - angles[:, 1])

    rows = np.hstack(columns)
    found = bootstrap(rows, statistic, resamples=question.resamples, seed=question.seed)
    return found.interval(question.level)


def _changes(groups: Sequence[Group], view: str) -> dict[str, float]:
    """Return what changes for users if the first takes the place of the second."""
    answers = _answers(groups, view)
    if answers is None or answers[0][0].kind != "classification":
        return {}
    new, old = answers[0][0], answers[1][0]
    return dict(vars(churn(old.chosen, new.chosen, old.truth)))


def _same_answers(groups: Sequence[Group], view: str) -> bool:
    """Say whether both have the same answers to everything: two single runs, or all pairs of runs."""
    single = max(len(group.members) for group in groups) == 1
    pairs = [(groups[0].members[0], groups[1].members[0])] if single else pairs_of(*groups)
    found = [(a.answers(view), b.answers(view)) for a, b in pairs]
    return bool(found) and all(
        one is not None and two is not None and np.array_equal(one.chosen, two.chosen)
        for one, two in found
    )
