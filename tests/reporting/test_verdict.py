"""The rules of the verdict, each at its threshold; and the figures they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sft_engine import sections
from sft_engine.reporting import built_in, curves, reliability, results, shown_examples
from sft_engine.reporting.certainty import interval, label_counts, macro_f1
from sft_engine.reporting.gap import gap
from sft_engine.reporting.verdict import given_verdict, verdict


def report(**changes) -> dict:
    """Return a run that nothing speaks against: 90 of 100 right, classes equally large."""
    base = {
        "recipe": "good.toml",
        "split": "test",
        "metrics": {
            "accuracy": 0.9,
            "recall/a": 0.9,
            "recall/b": 0.9,
            "confusion_matrix": [[450, 50], [50, 450]],
        },
        "task": {"kind": "classification", "metric": "accuracy", "direction": "max"},
        "interval": {"method": "Wilson", "low": 0.88, "high": 0.917, "examples": 1000},
        "examples": {"test": 1000},
        "gap": {
            "metric": "nll", "training": 0.3, "validation": 0.33, "step": 10,
            "lowest": 0.33, "lowest_step": 10, "last": 0.33, "last_step": 10, "evaluations": 2,
        },
    }  # fmt: skip
    return base | changes


def levels(given: dict) -> dict[str, str]:
    return {point["topic"]: point["level"] for point in verdict(given)["points"]}


def said(given: dict, topic: str) -> str:
    return next(p["text"] for p in verdict(given)["points"] if p["topic"] == topic)


def test_a_good_run_says_what_was_not_looked_at_and_how_to() -> None:
    found = verdict(report())
    assert found["headline"] == (
        "Accuracy 0.900 (95\u00a0% interval 0.880 to 0.917) on 1,000 test examples. Nothing that was "
        "looked at speaks against this result."
    )
    assert {
        p["topic"]: p["command"].split()[1] for p in found["points"] if p["level"] == "open"
    } == {
        "Robustness": "probe",
        "Diagnosis": "diagnose",
        "Seeds": "stability",
        "Comparison": "compare",
    }
    assert levels(report())["Baseline"] == levels(report())["Over-fitting"] == "good"


def test_the_headline_follows_from_the_worst_level() -> None:
    wide = {"method": "Wilson", "low": 0.8, "high": 0.95, "examples": 40}
    assert "Usable with care" in verdict(report(interval=wide))["headline"]
    metrics = report()["metrics"] | {"f1": math.nan}
    assert "Do not rely" in verdict(report(interval=wide, metrics=metrics))["headline"]
    assert verdict(report(interval=wide, metrics=metrics))["points"][0]["level"] == "serious"


@pytest.mark.parametrize(("low", "level"), [(0.501, "good"), (0.5, "serious")])
def test_accuracy_must_be_above_that_of_the_largest_class(low: float, level: str) -> None:
    found = {"method": "Wilson", "low": low, "high": 0.6, "examples": 1000}
    assert levels(report(interval=found))["Baseline"] == level


def test_a_regression_must_beat_the_mean() -> None:
    task = {"kind": "regression", "metric": "mse", "direction": "min"}
    assert levels(report(task=task, metrics={"mse": 2.0, "r2": 0.0}))["Baseline"] == "serious"
    assert "Baseline" not in levels(report(task=task, metrics={"mse": 2.0, "r2": 0.5}))


def test_over_fitting_is_a_rise_of_the_validation_loss_or_a_large_gap() -> None:
    risen = report()["gap"] | {"lowest": 0.2, "lowest_step": 5, "last": 0.33}
    assert levels(report(gap=risen))["Over-fitting"] == "warning"
    assert levels(report(gap=risen | {"step": 5, "validation": 0.2}))["Over-fitting"] == "info"
    just = risen | {"lowest": 0.3, "last": 0.329}
    assert levels(report(gap=just))["Over-fitting"] == "good"
    large = report()["gap"] | {"training": 0.1, "validation": 0.33}
    assert levels(report(gap=large))["Over-fitting"] == "warning"
    assert levels(report(gap={}))["Over-fitting"] == "open"


def test_findings_of_a_diagnosis_are_named_and_replace_our_own_rule() -> None:
    found = [
        sections.finding("overfitting", "serious", "e"),
        sections.finding("drift", "info", "e"),
    ]
    given = report()
    sections.add_section(given, "diagnosis", "Diagnosis", [sections.findings(found)])
    assert levels(given)["Diagnosis"] == "serious"
    assert said(given, "Diagnosis") == "Found in training: overfitting (serious), drift (info)."
    assert "Over-fitting" not in levels(given)
    sections.add_section(given, "diagnosis", "Diagnosis", [sections.findings([])])
    assert levels(given)["Diagnosis"] == levels(given)["Over-fitting"] == "good"


def test_the_split_that_chose_the_weights_judges_too_well() -> None:
    best = {"step": 10, "metric": "accuracy", "value": 0.9}
    assert levels(report(split="validation", best=best))["Selection"] == "warning"
    assert "Selection" not in levels(report(best=best))


def test_weak_classes_are_named_unless_they_are_too_small_to_say() -> None:
    metrics = report()["metrics"] | {"recall/a": 0.4}
    assert "a (40.0\u00a0%)" in said(report(metrics=metrics), "Classes")
    metrics["confusion_matrix"] = [[3, 4], [50, 450]]
    assert "Classes" not in levels(report(metrics=metrics))


@pytest.mark.parametrize(("ece", "level"), [(0.05, "good"), (0.08, "info"), (0.11, "warning")])
def test_calibration(ece: float, level: str) -> None:
    given = report(calibration={"ece": ece, "confidence": 0.97, "accuracy": 0.9})
    assert levels(given)["Calibration"] == level
    assert ("too sure" in said(given, "Calibration")) == (level != "good")


@pytest.mark.parametrize(("value", "level"), [(0.86, "good"), (0.82, "info"), (0.79, "warning")])
def test_robustness_is_the_worst_of_probes_and_views(value: float, level: str) -> None:
    probes = {"typos": {"metric": "accuracy", "severities": [0, 1], "values": [0.9, value]}}
    given = report(probes=probes, views={"noise@1": {"accuracy": 0.89}, "ema": {"accuracy": 0.1}})
    assert levels(given)["Robustness"] == level
    assert said(given, "Robustness").startswith("Of 2 perturbations, typos@1 costs most")
    smaller = report(
        task={"kind": "regression", "metric": "mse", "direction": "min"},
        metrics={"mse": 2.0},
        views={"noise@1": {"mse": 2.5}},
    )
    assert said(smaller, "Robustness") == "Under noise@1, mse goes from 2.00 to 2.50."
    assert levels(smaller)["Robustness"] == "warning"


def test_a_section_may_speak_for_itself() -> None:
    given = report()
    section = sections.add_section(given, "ood", "Strangers", [])
    section["verdict"] = [{"level": "warning", "text": "They are not noticed."}]
    assert said(given, "Strangers") == "They are not noticed."


def test_leaked_rows_are_a_warning_and_other_remarks_are_counted() -> None:
    leak = "3 of 10 rows of the split 'test' have an input that is in the training split too."
    given = report(preflight=[{"level": "warn", "message": m} for m in (leak, "another", "more")])
    assert levels(given)["Leakage"] == "warning"
    assert said(given, "Data").startswith("2 remarks were made")


def test_a_study_brings_its_own_verdict() -> None:
    own = {
        "headline": "Stable.",
        "points": [{"topic": "Seeds", "level": "good", "text": "t", "command": ""}],
    }
    assert given_verdict({"verdict": own}) == own
    assert given_verdict({"verdict": "Stable."}) == {"headline": "Stable.", "points": []}
    assert given_verdict({"verdict": ["One.", "Two."]})["headline"] == "One. Two."
    sections.add_section(other := {}, "a", "A", [], summary="It is so.")
    assert given_verdict(other)["headline"] == "It is so."


# --- Figures -------------------------------------------------------------------------------------


def record(label, shares: dict, prediction=None) -> dict:
    chosen = prediction or max(shares, key=shares.get)
    return {"label": label, "prediction": chosen, "probabilities": shares}


def test_ece_by_hand() -> None:
    records = [
        record("a", {"a": 0.95, "b": 0.05}),
        record("b", {"a": 0.95, "b": 0.05}),
        record("a", {"a": 0.55, "b": 0.45}),
        record("a", {"a": 1.0, "b": 0.0}),
        record(None, {"a": 1.0, "b": 0.0}),
    ]
    found = reliability.calibration(records)
    # bins 0.933..1 (three: 2/3 right at 2.9/3) and 0.533..0.6 (one: right at 0.55)
    assert found["ece"] == pytest.approx(3 / 4 * abs(2 / 3 - 2.9 / 3) + 1 / 4 * 0.45)
    assert [b["examples"] for b in found["bins"]] == [1, 3]
    assert found["examples"] == 4
    assert reliability.calibration([]) == {}


def test_ece_equals_that_of_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 3
    label = torch.randint(4, (500,), generator=torch.Generator().manual_seed(1))
    shares = logits.double().softmax(1)
    records = [
        record(f"c{y}", {f"c{i}": p for i, p in enumerate(row)})
        for y, row in zip(label.tolist(), shares.tolist(), strict=True)
    ]
    wanted = multiclass_calibration_error(shares, label, num_classes=4, n_bins=15)
    assert reliability.calibration(records)["ece"] == pytest.approx(float(wanted), abs=1e-6)


def test_f1_from_means_is_that_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    flags, true = rng.random((50, 3)) < 0.4, rng.random((50, 3)) < 0.5
    names = "abc"

    def named(row) -> list[str]:
        return [n for n, on in zip(names, row, strict=True) if on]

    records = [
        {"prediction": named(p), "label": named(t), "probabilities": dict.fromkeys(names, 0.5)}
        for p, t in zip(flags, true, strict=True)
    ]
    means = label_counts(records).mean(axis=0, keepdims=True)
    assert macro_f1(means)[0] == pytest.approx(f1_score(true, flags, average="macro"))
    found = interval({"kind": "multi-label", "metric": "f1"}, {"f1": 0.4}, records)
    assert found["low"] < macro_f1(means)[0] < found["high"]


def test_intervals_of_accuracy_and_squared_error() -> None:
    records = [{"label": "a", "prediction": "a" if i < 8 else "b"} for i in range(10)]
    task = {"kind": "classification", "metric": "accuracy"}
    found = interval(task, {"accuracy": 0.8}, records)
    # Wilson (1927) for 8 of 10
    assert (found["low"], found["high"]) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert interval(task, {"accuracy": math.nan}, records) == {}
    errors = [{"label": 0.0, "prediction": float(i % 5)} for i in range(200)]
    found = interval({"kind": "regression", "metric": "mse"}, {"mse": 6.0}, errors)
    spread = 1.96 * np.std([float(i % 5) ** 2 for i in range(200)]) / math.sqrt(200)
    assert found["high"] - found["low"] == pytest.approx(2 * spread, rel=0.1)


def train(step: int, loss: float, **more) -> dict:
    return {"kind": "train", "step": step, "loss": loss, "loss/task": loss, "lr": 0.1, **more}


def evaluation(step: int, nll: float, view: str = "", split: str = "validation") -> dict:
    return {
        "kind": "evaluation",
        "split": split,
        "view": view,
        "step": step,
        "nll": nll,
        "accuracy": 0.5,
    }


def test_the_gap_is_at_the_weights_that_were_kept() -> None:
    records = [train(i, 1 - i / 100) for i in range(1, 41)]
    records += [evaluation(s, v) for s, v in ((10, 0.9), (20, 0.5), (40, 0.8))]
    found = gap(records, kept=20)
    assert found["validation"] == found["lowest"] == 0.5
    assert found["training"] == pytest.approx(1 - (18 + 19 + 20) / 300)
    assert (found["last"], found["last_step"], found["lowest_step"]) == (0.8, 40, 20)
    assert gap([evaluation(1, 0.5)], 1) == gap([train(1, 0.5)], 1) == {}


def test_long_curves_are_thinned_with_their_extremes_kept() -> None:
    records = [train(i, float(i % 7), grad_norm=1.0) for i in range(1, 1001)]
    loss = next(b for b in curves.curves(records) if b["title"] == "Loss")
    assert len(loss["x"]["values"]) == curves.MOST_POINTS
    (series,) = loss["series"]
    assert set(series["low"]) == {0.0}
    assert set(series["high"]) == {6.0}
    assert loss["x"]["values"][-1] == 1000


def test_steps_that_were_rolled_back_count_once_and_terms_have_charts_of_their_own() -> None:
    records = [
        train(1, 9.0),
        train(2, 1.0),
        train(1, 3.0, **{"loss/l2-sp": 0.5}),
        evaluation(2, 0.7),
    ]
    blocks = {b["title"]: b for b in curves.curves(records)}
    series = {s["name"]: s["values"] for s in blocks["Loss"]["series"]}
    assert series["training, all terms"] == [3.0, 1.0]
    assert series["validation (nll)"] == [None, 0.7]
    assert blocks["Loss term l2-sp"]["series"][0]["values"] == [0.5]
    assert "Validation metrics" not in blocks  # one point is no curve


def test_views_are_the_last_of_the_judged_split() -> None:
    records = [
        evaluation(1, 0.5, "ema", "test"),
        evaluation(2, 0.6, "ema", "test"),
        evaluation(2, 1),
    ]
    assert built_in.views_of(records, "test") == {"ema": {"nll": 0.6, "accuracy": 0.5}}


def test_many_classes_are_shown_by_their_worst() -> None:
    names = [f"c{i}" for i in range(60)]
    classes = {name: {"f1": i / 60} for i, name in enumerate(names)}
    block = results.class_table(classes)
    assert len(block["rows"]) == results.MOST_CLASSES
    assert block["rows"][0][0] == "c0"
    assert "of 60" in block["note"]
    matrix = [[100 if i == j else 0 for j in range(60)] for i in range(60)]
    matrix[3][5] = 40
    (pairs,) = results.confusion(matrix, names)
    assert pairs["rows"] == [["c3", "c5", 40, 40 / 140]]


def test_errors_are_listed_by_confidence_and_doubts_by_the_lead() -> None:
    records = [
        record("a", {"a": 0.1, "b": 0.9}),
        record("a", {"a": 0.4, "b": 0.6}),
        record("b", {"a": 0.45, "b": 0.55}),
        record(None, {"a": 0.5, "b": 0.5}),
    ]
    errors, doubts = shown_examples.lists(records, lambda i: {"text": f"t{i}", "row": i})
    assert [row["row"] for row in errors["rows"]] == [0, 1]
    assert errors["rows"][0]["probability"] == 0.9
    assert [row["row"] for row in doubts["rows"]] == [2, 1, 0]


def test_regressions_and_label_sets_list_their_worst() -> None:
    far = [{"prediction": float(i), "label": 0.0} for i in range(20)]
    (block,) = shown_examples.lists(far, lambda i: {"row": i})
    assert [row["error"] for row in block["rows"]] == [19.0 - i for i in range(shown_examples.MOST)]
    several = [{"prediction": {"x": 1.0, "y": 5.0}, "label": {"x": 0.0, "y": 1.0}}]
    (block,) = shown_examples.lists(several, lambda i: {"row": i})
    assert block["rows"][0]["true"] == "x 0, y 1"
    many = [{"prediction": ["a"], "label": [], "probabilities": {"a": 0.9, "b": 0.1}}]
    (block,) = shown_examples.lists(many, lambda i: {"row": i})
    assert block["rows"][0]["loss"] == pytest.approx(-(math.log(0.1) + math.log(0.9)) / 2)
    assert list(shown_examples.lists([{"prediction": 1.0}], lambda i: {})) == []
