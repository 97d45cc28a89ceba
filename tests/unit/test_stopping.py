"""Early stopping: what it counts, what it says, and that a resumed run goes on counting."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sft_engine.builtin.schedules import Plateau
from sft_engine.builtin.stopping import EarlyStopping, is_better
from sft_engine.components import Head
from sft_engine.errors import RecipeError
from sft_engine.flow import Clock, Control, View
from sft_engine.options import check_options, signature_of
from sft_engine.settings import EvaluationSettings

if TYPE_CHECKING:
    from sft_engine.flow import Run

PLAIN = View()


def a_run(**changes: Any) -> Run:
    """Return what a component that watches a metric asks a run for."""
    parts: dict[str, Any] = {
        "task": SimpleNamespace(
            main_metric="accuracy", head=Head("classification", 2, ("bad", "good"))
        ),
        "plan": SimpleNamespace(evaluation=EvaluationSettings()),
        "splits": {"train": [], "validation": []},
        "clock": Clock(total_steps=1000, steps_per_epoch=100),
        "control": Control(),
        "evaluating": "validation",
    }
    return cast("Run", SimpleNamespace(**parts | changes))


def evaluate(stopping: Any, run: Run, *values: float, metric: str = "accuracy") -> list[str]:
    """Evaluate every 100 steps; return what the component asked for after each."""
    asked = []
    for value in values:
        run.clock.step += 100
        stopping.sft_metrics(run, PLAIN, {"loss": 1.0, metric: value})
        asked.append(run.control.stop)
    return asked


def test_it_stops_when_patience_is_used_up_and_says_why() -> None:
    asked = evaluate(EarlyStopping(patience=3), a_run(), 0.8, 0.84123, 0.83, 0.84123, 0.84)
    assert asked == [""] * 4 + [
        "early-stopping: validation accuracy has not improved on 0.8412 (step 200) for 3 evaluations"
    ]


def test_an_improvement_starts_the_count_again() -> None:
    asked = evaluate(EarlyStopping(patience=2), a_run(), 0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.6)
    assert [bool(reason) for reason in asked] == [False] * 6 + [True]


@pytest.mark.parametrize("metric", ["loss", "mse"])
def test_less_of_a_loss_is_better(metric: str) -> None:
    stopping = EarlyStopping(metric=metric, patience=1)
    assert evaluate(stopping, a_run(), 0.9, 0.8, 0.85, metric=metric) == [
        "",
        "",
        f"early-stopping: validation {metric} has not improved on 0.8 (step 200) for 1 evaluation",
    ]


def test_the_direction_can_be_said() -> None:
    stopping = EarlyStopping(direction="min", patience=1)
    assert [bool(r) for r in evaluate(stopping, a_run(), 0.5, 0.4, 0.45)] == [False, False, True]


def test_a_change_within_min_delta_is_no_improvement() -> None:
    stopping = EarlyStopping(min_delta=0.01, patience=2)
    assert evaluate(stopping, a_run(), 0.5, 0.505, 0.51)[-1].startswith("early-stopping")
    assert evaluate(EarlyStopping(min_delta=0.01, patience=2), a_run(), 0.5, 0.505, 0.52)[-1] == ""


@pytest.mark.parametrize(("direction", "sign"), [("max", 1.0), ("min", -1.0)])
def test_a_value_must_beat_the_best_one_by_more_than_the_margin(
    direction: Any, sign: float
) -> None:
    beaten = [is_better(sign * value, sign * 0.5, direction, 0.25) for value in (0.5, 0.75, 0.76)]
    assert beaten == [False, False, True]


def test_nan_is_never_an_improvement() -> None:
    asked = evaluate(EarlyStopping(patience=2), a_run(), math.nan, math.nan)
    assert asked[-1] == "early-stopping: validation accuracy was not finite in 2 evaluations"
    asked = evaluate(EarlyStopping(patience=2), a_run(), 0.5, math.nan, math.nan)
    assert asked[-1].endswith("has not improved on 0.5 (step 100) for 2 evaluations")


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("best", [None, 0.5, -0.5])
def test_nan_and_the_worst_infinity_never_beat_anything(direction: Any, best: Any) -> None:
    worst = -math.inf if direction == "max" else math.inf
    assert not is_better(math.nan, best, direction, 0.0)
    assert not is_better(worst, best, direction, 0.0)
    assert is_better(-worst, best, direction, 0.0)


@pytest.mark.parametrize("start_after", [250, 0.25])
def test_evaluations_before_start_after_do_not_count(start_after: float) -> None:
    stopping = EarlyStopping(patience=2, start_after=start_after)
    asked = evaluate(stopping, a_run(), 0.9, 0.8, 0.8, 0.8)
    assert [bool(reason) for reason in asked] == [False, False, False, True]
    assert "0.9 (step 100)" in asked[-1]


def test_only_the_plain_view_of_the_validation_split_is_watched() -> None:
    stopping = EarlyStopping(patience=1)
    run = a_run()
    for split, view in [("test", PLAIN), ("validation", View("typos")), ("train", PLAIN)]:
        run.evaluating = split
        for _ in range(3):
            stopping.sft_metrics(run, view, {"accuracy": 0.1})
    assert stopping.state_dict() == EarlyStopping().state_dict()
    assert run.control.stop == ""


def test_the_evaluation_of_the_final_weights_changes_nothing() -> None:
    stopping = EarlyStopping(patience=1)
    run = a_run()
    evaluate(stopping, run, 0.5, 0.4)
    before = (stopping.state_dict(), run.control.stop)
    evaluate(stopping, run, 0.5)
    assert (stopping.state_dict(), run.control.stop) == before


def test_it_goes_on_from_its_state() -> None:
    values = [0.5, 0.6, 0.55, 0.58, 0.59]
    whole = evaluate(EarlyStopping(patience=3), a_run(), *values)
    first, second, run = EarlyStopping(patience=3), EarlyStopping(patience=3), a_run()
    evaluate(first, run, *values[:3])
    second.load_state_dict(first.state_dict())
    assert evaluate(second, run, *values[3:]) == whole[3:]
    assert whole[-1] != ""


def test_a_misspelt_metric_is_named() -> None:
    with pytest.raises(RecipeError, match=r'found "acuracy".*did you mean `accuracy`'):
        evaluate(EarlyStopping(metric="acuracy"), a_run(), 0.5)
    with pytest.raises(RecipeError, match=r"`schedule.metric`.*allowed: `accuracy`, `loss`"):
        Plateau(metric="perplexity").sft_metrics(a_run(), PLAIN, {"loss": 1.0, "accuracy": 0.5})


@pytest.mark.parametrize("component", [EarlyStopping(), Plateau()])
def test_what_cannot_be_watched_stops_the_run_before_training(component: Any) -> None:
    component.sft_setup(a_run())
    with pytest.raises(RecipeError, match=r"the data has none: set `data.validation`"):
        component.sft_setup(a_run(splits={"train": []}))
    never = SimpleNamespace(evaluation=EvaluationSettings(every_epochs=0))
    with pytest.raises(RecipeError, match=r"`evaluation.every_epochs`: found 0"):
        component.sft_setup(a_run(plan=never))


@pytest.mark.parametrize("component", [EarlyStopping, Plateau])
def test_a_metric_of_unknown_direction_stops_the_run_before_training(component: Any) -> None:
    with pytest.raises(RecipeError, match=r'found "flavour".* check it, or set `direction`'):
        component(metric="flavour").sft_setup(a_run())
    with pytest.raises(RecipeError, match=r'found "acuracy".* did you mean `accuracy`\?'):
        component(metric="acuracy").sft_setup(a_run())
    component(metric="flavour", direction="max").sft_setup(a_run())


def test_plateau_watches_through_the_same_hook() -> None:
    schedule, run = Plateau(patience=0, gamma=0.5), a_run()
    evaluate(schedule, run, 0.5, 0.4)
    assert schedule.factor(0, 10) == 0.5


def test_every_option_is_explained_and_has_a_default() -> None:
    signature = signature_of("sft_engine.builtin.stopping:EarlyStopping")
    assert [o.name for o in signature.options if not o.help or o.required] == []
    assert check_options(signature, {"patience": 0}, key="extension[0]", owner="early-stopping")[1]
