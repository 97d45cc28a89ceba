"""Rules on records that are made up: where each begins, and what it leaves alone."""

from __future__ import annotations

import math

import pytest

from sft_engine.diagnosis import curves, data_rules, findings_of, outcomes, steps
from sft_engine.diagnosis.evidence import Evidence, evidence_of
from sft_engine.diagnosis.finding import Finding, add_to_report, verdict
from sft_engine.diagnosis.statistics import has_learned
from sft_engine.diagnosis.watch import FIRST, LATEST, History

START = {
    "kind": "diagnostics",
    "of": "start",
    "step": 0,
    "total_steps": 100,
    "layer_groups": ["trunk", "head"],
    "head": "classification",
    "chance_loss": math.log(2),
    "sizes": {"train": 100, "validation": 100},
}


def train(losses, **more):
    """Return training records, one a step."""
    return [
        {"kind": "train", "step": i + 1, "loss": x, "loss_max": x, "lr": 0.1, "grad_norm": 1.0}
        | {name: values[i] for name, values in more.items()}
        for i, x in enumerate(losses)
    ]


def look(step, loss, *, sample=None, accuracy=0.9, **more):
    """Return a look at 100 examples of validation."""
    right = round(50 * accuracy)
    found = {"kind": "diagnostics", "of": "validation", "step": step, "epoch": step / 10}
    found |= {"examples": 100, "loss": loss, "loss_error": 0.01, "accuracy": accuracy}
    found |= {"spread": 1.0, "labels": [50, 50], "predicted": [50, 50], "hits": [right, right]}
    if sample is not None:
        found["train"] = {"examples": 64, "loss": sample, "accuracy": 1.0}
    return found | more


def of(*records, recipe=None, **more):
    return evidence_of([START, *records], recipe or {}, **more)


def names(rule, evidence):
    return [(each.name, each.level) for each in rule(evidence)]


def rising(*losses, samples=None):
    samples = samples or [0.5 / (i + 1) for i in range(len(losses))]
    return of(
        *(
            look(10 * i + 10, x, sample=s)
            for i, (x, s) in enumerate(zip(losses, samples, strict=True))
        )
    )


def test_overfitting_begins_where_validation_is_best():
    [found] = curves.overfitting(rising(0.6, 0.4, 0.5, 0.6))
    assert (found.name, found.level, found.step) == ("overfitting", "warning", 20)
    assert "0.4" in found.evidence
    assert "gap grew from 0.15 to 0.475" in found.evidence
    [found] = curves.overfitting(rising(0.6, 0.4, 0.7, 0.9))
    assert found.level == "serious"


@pytest.mark.parametrize(
    "evidence",
    [
        rising(0.6, 0.4, 0.5),  # once is no trend
        rising(0.6, 0.4, 0.42, 0.43),  # less than a tenth
        rising(0.6, 0.04, 0.06, 0.08),  # twice next to nothing
        rising(0.6, 0.4, 0.5, 0.6, samples=[0.5, 0.3, 0.4, 0.55]),  # training got worse, too
    ],
)
def test_what_is_not_overfitting(evidence):
    assert names(curves.overfitting, evidence) == []


def test_a_gap_of_accuracies_is_overfitting_without_a_curve():
    assert names(curves.overfitting, of(look(10, 0.9, sample=0.01, accuracy=0.7))) == [
        ("overfitting", "warning")
    ]
    assert names(curves.overfitting, of(look(10, 0.9, sample=0.01, accuracy=0.9))) == []


def test_validation_oscillates_if_it_swings_by_what_matters():
    swings = of(*(look(10 * i, 0.2 + 0.3 * (i % 2), sample=0.1) for i in range(1, 9)))
    assert names(curves.oscillating_validation, swings) == [("oscillating-validation", "warning")]
    near_zero = of(*(look(10 * i, 0.004 + 0.02 * (i % 2), sample=0.001) for i in range(1, 9)))
    assert names(curves.oscillating_validation, near_zero) == []


def test_a_spike_is_measured_by_the_begin_and_by_what_was_before():
    calm = [1.0, 0.6, 0.5, 0.5, 0.4, 0.5, 0.4]
    assert names(steps.loss_spikes, of(*train([*calm, 2.1, 0.4, 0.4]))) == [
        ("loss-spikes", "warning")
    ]
    assert names(steps.loss_spikes, of(*train([*calm, 2.1, 2.2, 2.3]))) == [
        ("loss-spikes", "serious")
    ]
    assert names(steps.loss_spikes, of(*train([*calm, 1.9, 0.4]))) == []
    # In mid-training it may come back yet.
    under_way = of(*train([*calm, 2.1]), ended=False)
    assert names(steps.loss_spikes, under_way) == [("loss-spikes", "warning")]


def test_a_hard_example_near_zero_is_no_spike():
    assert names(steps.loss_spikes, of(*train([0.7, *[0.001] * 30, 0.9, 0.001]))) == []


def test_learning_rates():
    large = {"update/trunk": [0.06] * 10}
    assert names(steps.learning_rate_too_high, of(*train([0.7] * 9 + [0.9], **large))) == [
        ("learning-rate-too-high", "serious")
    ]
    falling = [0.7 / (i + 1) for i in range(10)]
    good = look(10, 0.1)
    assert names(steps.learning_rate_too_high, of(*train(falling, **large), good)) == []
    huge = {"update/trunk": [0.3] * 10}
    assert names(steps.learning_rate_too_high, of(*train(falling, **huge), good)) == [
        ("learning-rate-too-high", "warning")
    ]
    small = {"update/trunk": [1e-6] * 10}
    still = look(10, 0.69, accuracy=0.5, drift={"trunk": 1e-4, "head": 2e-4})
    assert names(steps.learning_rate_too_low, of(*train([0.7] * 10, **small), still)) == [
        ("learning-rate-too-low", "serious")
    ]
    assert names(steps.learning_rate_too_low, of(*train([0.1] * 10, **small), still)) == []
    moved = still | {"drift": {"trunk": 0.0, "head": 0.02}}
    assert names(steps.learning_rate_too_low, of(*train([0.7] * 10, **small), moved)) == []


def test_a_head_without_gradient():
    norms = {"grad_norm/trunk": [1.0] * 6, "grad_norm/head": [0.0] * 6}
    assert names(outcomes.dead_head, of(*train([0.7] * 6, **norms))) == [("dead-head", "serious")]
    learned = of(*train([0.7] * 6, **norms), look(6, 0.2))
    assert names(outcomes.dead_head, learned) == [("dead-head", "warning")]
    [frozen] = outcomes.dead_head(of(*train([0.7] * 6, **{"grad_norm/trunk": [1.0] * 6})))
    assert "frozen" in frozen.evidence
    thawed = norms | {"grad_norm/head": [0.0] * 5 + [0.5]}
    assert names(outcomes.dead_head, of(*train([0.7] * 6, **thawed))) == []
    alone = {"grad_norm/head": [1.0] * 6}  # the trunk is frozen
    assert names(outcomes.dead_head, of(*train([0.7] * 6, **alone))) == []


def test_predictions_are_not_judged_in_warm_up():
    one_class = {"predicted": [100, 0]}
    early = [look(10, 0.69, **one_class), look(20, 0.69, **one_class)]
    assert names(outcomes.collapsed_predictions, of(*early, ended=False)) == []
    later = [*early, look(30, 0.69, **one_class)]
    [found] = outcomes.collapsed_predictions(of(*later, ended=False, label_names=("no", "yes")))
    assert (found.level, found.step) == ("serious", 10)
    assert "100% of 100 predictions at step 30 are `no`, which is 50%" in found.evidence
    assert names(outcomes.collapsed_predictions, of(*later, look(40, 0.5))) == []


def test_the_same_output_for_everything():
    same = [look(10 * i, 0.69, spread=1e-5) for i in range(1, 4)]
    assert names(outcomes.constant_outputs, of(*same)) == [("constant-outputs", "serious")]
    assert names(outcomes.constant_outputs, of(*same, look(40, 0.6))) == []
    small = look(10, 0.1, spread=1e-5, label_spread=1e-5)  # of a regression of small numbers
    assert names(outcomes.constant_outputs, of(small)) == []


def test_a_class_that_is_not_recognised():
    rare = {"labels": [97, 6], "hits": [97, 0], "examples": 103}
    assert names(outcomes.class_neglect, of(look(10, 0.2, accuracy=0.94, **rare))) == [
        ("class-neglect", "serious")
    ]
    few = {"labels": [97, 3], "hits": [97, 0]}
    assert names(outcomes.class_neglect, of(look(10, 0.2, accuracy=0.97, **few))) == []


def test_what_follows_from_another_finding_is_left_out():
    same = {"spread": 0.0, "predicted": [100, 0], "hits": [50, 0]}
    same["train"] = {"examples": 64, "loss": 0.7, "accuracy": 0.5}
    evidence = of(*(look(10 * i, 0.7, accuracy=0.5, **same) for i in range(1, 4)))
    assert [each.name for each in findings_of(evidence)] == ["constant-outputs"]


def test_nothing_is_known_of_nothing():
    assert findings_of(Evidence()) == []


def test_not_finite():
    [found] = steps.not_finite(of(*train([1.0, math.nan])))
    assert (found.level, found.step) == ("serious", 2)
    assert names(steps.not_finite, of(*train([1.0, math.nan, 0.9]))) == [("not-finite", "warning")]
    overflow = of(*train([1.0, 1.0, 0.9], grad_norm=[1.0, math.inf, 1.0]))
    assert names(steps.not_finite, overflow) == [("not-finite", "info")]


def test_infinite_losses_are_no_warning_of_numpy():
    losses = [1.0, math.inf, *[0.5] * 8]
    assert [each.name for each in findings_of(of(*train(losses), look(10, 0.3)))] == ["not-finite"]


def test_leaks():
    def overlap(exact, near):
        rows = {"exact": exact, "near": near, "rows": [1, 2]}
        return evidence_of([START | {"overlap": {"validation": rows}}], {})

    assert names(data_rules.leakage, overlap(6, 5)) == [("leakage", "serious")]
    assert names(data_rules.leakage, overlap(0, 3)) == [("leakage", "warning")]
    assert names(data_rules.leakage, overlap(1, 0)) == [("leakage", "info")]
    assert names(data_rules.leakage, overlap(0, 0)) == []


def test_wrong_labels_are_as_frequent_where_the_model_is_sure():
    noise = {"suspects": 25, "rows": [7], "labels": [0], "predicted": [1]}
    flat = noise | {"sure_error": 0.24, "unsure_error": 0.3}
    assert names(data_rules.label_noise, of(look(10, 0.5, noise=flat))) == [
        ("label-noise", "warning")
    ]
    hard = noise | {"sure_error": 0.02, "unsure_error": 0.5}
    assert names(data_rules.label_noise, of(look(10, 0.5, noise=hard))) == [("label-noise", "info")]


def test_whether_anything_was_learned():
    assert has_learned({"labels": [50, 50], "hits": [40, 40], "examples": 100})
    assert not has_learned({"labels": [50, 50], "hits": [28, 27], "examples": 100})
    assert not has_learned({"labels": [97, 3], "hits": [97, 0], "examples": 100})
    assert has_learned({"labels": [90, 30], "hits": [70, 25], "examples": 120})
    assert has_learned({"label_spread": 2.0, "loss": 1.0})
    assert not has_learned({"label_spread": 1.0, "loss": 1.0})


def test_older_records_give_counts_by_their_confusion_matrix():
    old = {"kind": "evaluation", "split": "validation", "view": "", "step": 3, "nll": 0.4}
    evidence = evidence_of([old | {"confusion_matrix": [[8, 2], [1, 9]]}], {})
    assert evidence.look["loss"] == 0.4
    assert evidence.look["predicted"] == [9, 11]
    assert evidence.look["labels"] == [10, 10]
    assert evidence.look["hits"] == [8, 9]


def test_phases_are_judged_by_themselves():
    first = [r | {"phase": "one"} for r in train([0.1] * 9)]
    second = [r | {"phase": "two", "step": r["step"] + 9} for r in train([3.0, 2.0, 1.0])]
    evidence = of(*first, *second)
    assert evidence.start_loss == 3.0
    assert names(steps.loss_spikes, evidence) == []


def test_memory_is_bounded():
    history = History()
    for record in train([0.5] * 5000):
        history.add(record)
    kept = [r["step"] for r in history.records]
    assert len(kept) == FIRST + LATEST
    assert (kept[0], kept[-1]) == (1, 5000)
    assert kept == sorted(kept)


def test_the_section_of_the_report():
    report: dict[str, object] = {}
    add_to_report(
        report, [Finding("drift", "info", "Far.", 3), Finding("leakage", "serious", "Same.")]
    )
    [section] = report["sections"]
    assert section["summary"] == "1 serious: leakage; 1 to know: drift."
    assert [f["step"] for f in section["blocks"][0]["findings"]] == [3, None]
    assert verdict([]) == "Nothing was found that is wrong with this run."
