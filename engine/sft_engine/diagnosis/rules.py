"""All rules, which of them hold in mid-training, and which finding explains which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sft_engine.diagnosis import curves, data_rules, outcomes, steps
from sft_engine.diagnosis.evidence import Evidence
from sft_engine.diagnosis.finding import LEVELS, Finding

Rule = Callable[[Evidence], Iterable[Finding]]

RULES: tuple[Rule, ...] = (
    steps.not_finite,
    steps.learning_rate_too_high,
    steps.learning_rate_too_low,
    steps.loss_spikes,
    steps.gradient_spikes,
    steps.update_anomaly,
    steps.exploding_weights,
    steps.judged_steps,
    outcomes.constant_outputs,
    outcomes.dead_head,
    outcomes.collapsed_predictions,
    outcomes.class_neglect,
    outcomes.forgetting,
    outcomes.drift,
    curves.overfitting,
    curves.underfitting,
    curves.oscillating_validation,
    curves.not_converged,
    data_rules.constant_inputs,
    data_rules.leakage,
    data_rules.label_in_input,
    data_rules.perfect_validation,
    data_rules.label_noise,
)
"""In the order of a doctor: what ended the run, how it moved, what it became, what it was given."""

LIVE: tuple[Rule, ...] = (
    steps.loss_spikes,
    steps.exploding_weights,
    steps.learning_rate_too_high,
    outcomes.constant_outputs,
    outcomes.dead_head,
    outcomes.collapsed_predictions,
    outcomes.forgetting,
    curves.overfitting,
    data_rules.constant_inputs,
    data_rules.leakage,
    data_rules.label_in_input,
)
"""Those that may speak before the end; they wait for as much of the run as they need."""

EXPLAINS: dict[str, tuple[str, ...]] = {
    "constant-inputs": (
        "constant-outputs", "underfitting", "collapsed-predictions", "dead-head", "leakage"
    ),
    "constant-outputs": ("collapsed-predictions", "class-neglect", "underfitting", "not-converged"),
    "dead-head": ("collapsed-predictions", "class-neglect", "underfitting"),
    "collapsed-predictions": ("class-neglect", "underfitting"),
    "learning-rate-too-high": ("underfitting", "update-anomaly"),
    "learning-rate-too-low": (
        "underfitting", "not-converged", "collapsed-predictions", "class-neglect"
    ),
    "exploding-weights": ("underfitting", "update-anomaly"),
    "class-neglect": ("underfitting",),
    "label-noise": ("underfitting",),
    "leakage": ("perfect-validation",),
    "label-in-input": ("perfect-validation",),
    "overfitting": ("not-converged",),
    "underfitting": ("not-converged",),
}  # fmt: skip
"""A finding with those that follow from it, and are not said beside it."""


def findings_of(evidence: Evidence, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """Return what is wrong with a run, the worst first; what follows from another finding is left out."""
    found = list(_all(evidence, rules))
    explained = {
        name
        for finding in found
        if finding.level != "info"
        for name in EXPLAINS.get(finding.name, ())
    }
    left = [each for each in found if each.name not in explained]
    return sorted(left, key=lambda each: -LEVELS.index(each.level))


def _all(evidence: Evidence, rules: Iterable[Rule]) -> Iterator[Finding]:
    for rule in rules:
        yield from rule(evidence)


def serious_now(evidence: Evidence) -> list[Finding]:
    """Return what must be said while training goes on."""
    return [each for each in findings_of(evidence, LIVE) if each.level == "serious"]
