"""What follows from the evidence, in words. The rules stand in docs/compare.md; change both together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sft_engine.console_lines import number
from sft_engine.significance.paired import least_pairs, least_runs

if TYPE_CHECKING:
    from sft_engine.comparing.evidence import Evidence
    from sft_engine.comparing.over_runs import OverRuns, Question
    from sft_engine.significance.intervals import Estimate

Code = Literal[
    "same", "better", "better-by-margin", "equivalent", "not-worse", "undecided", "unknown"
]

LEAST_EXAMPLES = 20
"""With fewer, limits of the bootstrap are too narrow to rest a verdict on."""

BETTER: tuple[Code, ...] = ("better", "better-by-margin")

NOT_BORNE_OUT = "The interval leaves out zero, but the test does not bear it out."

SHORT: dict[Code, str] = {
    "same": "same answers",
    "better": "better",
    "better-by-margin": "better by more than the margin",
    "equivalent": "equivalent",
    "not-worse": "not worse",
    "undecided": "no difference shown",
    "unknown": "cannot be tested",
}


@dataclass(frozen=True)
class Verdict:
    """What may be said of two groups.

    Args:
        code: Which rule held.
        better: Name of the group that is shown to be better, or no worse; empty if none is.
        sentence: The same in words, with figures.
        p: Adjusted for all pairs, by Holm.
    """

    code: Code
    better: str
    sentence: str
    p: float


def judge(
    evidence: Evidence, question: Question, *, p: float, alpha: float, margin: float | None = None
) -> Verdict:
    """Apply the rules to two groups.

    Args:
        evidence: What the data says.
        question: What was asked.
        p: Of the evidence, adjusted for all pairs.
        alpha: The level of the whole comparison.
        margin: Differences up to this size do not matter; None if nobody said so.
    """
    code, better = _rule(evidence, question, p, alpha, margin)
    return Verdict(code, better, _sentence(code, better, evidence, question, p, alpha, margin), p)


def _rule(
    evidence: Evidence, question: Question, p: float, alpha: float, margin: float | None
) -> tuple[Code, str]:
    first, second = evidence.first, evidence.second
    if evidence.same_answers and evidence.difference == 0:
        return "same", ""
    limits = evidence.limits
    if limits is None or math.isnan(limits.low) or math.isnan(p) or _is_small(evidence):
        return "unknown", ""
    sign = 1 if question.larger_is_better else -1
    leader = first if evidence.difference * sign > 0 else second
    shown = limits.excludes_zero and p <= alpha
    if margin is None:
        return ("better", leader) if shown else ("undecided", "")
    return _rule_of_margin(evidence, sign, margin, leader if shown else "")


def _rule_of_margin(evidence: Evidence, sign: int, margin: float, shown: str) -> tuple[Code, str]:
    limits, wide = evidence.limits, evidence.limits_90
    assert limits is not None
    if shown and min(abs(limits.low), abs(limits.high)) > margin:
        return "better-by-margin", shown
    if wide is not None and -margin < wide.low and wide.high < margin:
        return "equivalent", shown
    if shown:
        return "better", shown
    if wide is None:
        return "undecided", ""
    low, high = (wide.low, wide.high) if sign > 0 else (-wide.high, -wide.low)
    if low > -margin:
        return "not-worse", evidence.first
    return ("not-worse", evidence.second) if high < margin else ("undecided", "")


# --- Words ---------------------------------------------------------------------------------------


def _sentence(
    code: Code,
    better: str,
    evidence: Evidence,
    question: Question,
    p: float,
    alpha: float,
    margin: float | None,
) -> str:
    first, second = evidence.first, evidence.second
    other = second if better == first else first
    size = "" if margin is None else number(margin)
    heads: dict[Code, str] = {
        "same": f"{first} and {second} gave the same answers to all {evidence.examples} examples",
        "better": f"{better} is better than {other}",
        "better-by-margin": f"{better} is better than {other} by more than the margin of {size}",
        "equivalent": f"{first} and {second} are equivalent within the margin of {size}",
        "not-worse": f"{better} is no worse than {other} by more than the margin of {size}; that it is "
        "better is not shown",
        "undecided": f"No difference between {first} and {second} is shown, and none is ruled out",
        "unknown": f"Whether {first} or {second} is better cannot be tested",
    }
    parts = [f"{heads[code]}: {_figures(evidence, question)}."]
    if code == "equivalent" and better:
        parts.append(f"{better} is better, but by less than the margin.")
    if code == "better" and margin is not None:
        parts.append("Whether by more than the margin is not shown.")
    parts += _certainty(code, evidence, p, alpha)
    return " ".join(parts)


def _figures(evidence: Evidence, question: Question) -> str:
    one, two = evidence.values
    where = "" if evidence.view == "clean" else f" on {evidence.view}"
    text = f"{question.metric}{where} {number(one)} against {number(two)}"
    if evidence.limits is None or math.isnan(evidence.limits.low):
        return text
    return f"{text}, difference {number(evidence.difference)} ({interval(evidence.limits)})"


def interval(limits: Estimate) -> str:
    """Write limits with their level: `95 % interval -0.0100 to 0.0300`."""
    return f"{100 * limits.level:.3g} % interval {number(limits.low)} to {number(limits.high)}"


def _certainty(code: Code, evidence: Evidence, p: float, alpha: float) -> list[str]:
    """Say how certain it is, of what it speaks, and what it would take to know more."""
    if code == "same":
        return []
    if code == "unknown":
        return [_why_unknown(evidence)]
    runs = evidence.over_runs
    adjusted = "" if math.isclose(p, evidence.p) else f", {p_text(p)} for all pairs"
    if runs is None:
        return [*_over_examples(code, evidence, adjusted), _about_models(evidence)]
    pairs = (
        f"{runs.pairs} pairs of runs" if runs.pairs else "{} against {} runs".format(*evidence.runs)
    )
    said = [f"Over {pairs}, {runs.test}: {p_text(runs.p)}{adjusted}."]
    if evidence.scope == "runs":
        said.append("This holds for these examples; for others nothing is known.")
    if code == "undecided":
        said += _why_undecided(evidence, runs, p, alpha)
    return said


def _over_examples(code: Code, evidence: Evidence, adjusted: str) -> list[str]:
    tested = f"{evidence.test_examples}: {p_text(evidence.p)}{adjusted}"
    if not evidence.examples:
        return [f"By {tested}; without predictions of this view examples cannot be paired."]
    said = [f"Over {evidence.examples} examples, {tested}."]
    if code == "undecided" and evidence.limits is not None and evidence.limits.excludes_zero:
        said.append(NOT_BORNE_OUT)
    return said


def _is_small(evidence: Evidence) -> bool:
    """Say whether the bootstrap alone would have to judge by too few examples."""
    alone = evidence.over_runs is None and evidence.test_examples == "paired bootstrap"
    return alone and evidence.examples < LEAST_EXAMPLES


def _about_models(evidence: Evidence) -> str:
    if max(evidence.runs) == 1:
        return (
            "One run each: this speaks of these two models; with other seeds the methods may differ "
            "otherwise."
        )
    return "One of both is a single run: this speaks of these models, not of other seeds."


def _why_undecided(evidence: Evidence, runs: OverRuns, p: float, alpha: float) -> list[str]:
    if runs.least_p > alpha:
        needed = (
            f"{least_pairs(alpha)} pairs"
            if runs.pairs
            else f"{least_runs(alpha)} runs in each group"
        )
        return [
            f"So few runs cannot give a p below {number(runs.least_p)}: {needed} are the least."
        ]
    outside = evidence.limits is not None and evidence.limits.excludes_zero
    if p <= alpha and evidence.limits is not None and not outside:
        return ["It holds over runs on these examples, but other examples may turn it round."]
    return [NOT_BORNE_OUT] if outside and p > alpha else []


def _why_unknown(evidence: Evidence) -> str:
    if any(map(math.isnan, evidence.values)):
        return "A value is missing or NaN: a run has failed, or its model returned NaN."
    if _is_small(evidence):
        return (
            f"{evidence.examples} examples are too few for a bootstrap: it needs {LEAST_EXAMPLES}."
        )
    return (
        "Each is one run, and this metric cannot be computed again from its predictions: compare "
        "several runs of each."
    )


def p_text(p: float) -> str:
    """Write a p-value: `p = 0.031`, `p < 0.001`."""
    if math.isnan(p):
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"  # noqa: PLR2004


# --- Of all together -----------------------------------------------------------------------------


def overall(
    ranked: Sequence[str], judged: Sequence[tuple[Evidence, Verdict]], *, test: str = ""
) -> str:
    """Say what follows for all groups.

    Args:
        ranked: Names, the best mean first.
        judged: All pairs.
        test: What the test of all at once said, as a sentence.
    """
    if len(judged) == 1:
        return judged[0][1].sentence
    won = {
        name: [_loser(e, v) for e, v in judged if v.code in BETTER and v.better == name]
        for name in ranked
    }
    leader = ranked[0]
    if len(won[leader]) == len(ranked) - 1:
        head = f"{leader} is better than all others."
    elif any(won.values()):
        pairs = [f"{name} than {' and '.join(lost)}" for name, lost in won.items() if lost]
        head = (
            f"No one is shown to be better than all others; {leader} has the best mean. Shown to be "
            f"better: {'; '.join(pairs)}."
        )
    else:
        head = (
            f"No difference between any two of {', '.join(ranked)} is shown, and none is ruled out; "
            f"{leader} has the best mean."
        )
    return f"{head} {test}".strip()


def _loser(evidence: Evidence, verdict: Verdict) -> str:
    return evidence.second if verdict.better == evidence.first else evidence.first


def of_views(judged: Sequence[tuple[Evidence, Verdict]]) -> str:
    """Count what was shown on the probes, pair by pair."""
    said = []
    for pair in dict.fromkeys((e.first, e.second) for e, _ in judged):
        verdicts = [v for e, v in judged if (e.first, e.second) == pair]
        wins = {name: sum(v.code in BETTER and v.better == name for v in verdicts) for name in pair}
        shown = ", ".join(f"{name} is better on {count}" for name, count in wins.items() if count)
        rest = len(verdicts) - sum(wins.values())
        nothing = f"on {rest} no difference is shown" if rest else ""
        if not shown:
            nothing = "no difference is shown on any"
        title = f"On {len(verdicts)} probe views of {pair[0]} and {pair[1]}"
        said.append(f"{title}: {', '.join(filter(None, [shown, nothing]))}.")
    return " ".join(said)
