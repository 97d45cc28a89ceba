"""Early stopping, and what every component needs that watches a validation metric."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from sft_engine.errors import RecipeError
from sft_engine.hookspecs import hookimpl
from sft_engine.sentences import choices, show_value, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sft_engine.flow import Run, View

Direction = Literal["max", "min"]

_WHERE = "`metric` of early-stopping"


@dataclass(frozen=True)
class Watched:
    """A metric as one evaluation found it."""

    name: str
    value: float
    direction: Direction


def watched(
    run: Run,
    view: View,
    values: Mapping[str, float],
    metric: str,
    direction: Literal["auto", "max", "min"],
    where: str,
) -> Watched | None:
    """Return the watched metric, or None if this is not the plain view of the validation split.

    Args:
        run: Knows which split is evaluated, and the task.
        view: What was evaluated.
        values: Its metrics by name.
        metric: The one to watch; `auto` for the task's main metric.
        direction: Which way is better; `auto` to go by the name.
        where: Key of the recipe, for the message.

    Raises:
        RecipeError: there is no such metric, or its direction is not known.
    """
    if run.evaluating != "validation" or view.name:
        return None
    name = run.task.main_metric if metric == "auto" else metric
    if name not in values:
        raise RecipeError(
            f"{where}: found {show_value(name)}, which the evaluation of the validation split does "
            f"not have; {suggest(name, values) or choices(sorted(values))}"
        )
    return Watched(name, values[name], _direction(name, direction))


def _direction(name: str, wanted: Literal["auto", "max", "min"]) -> Direction:
    if wanted != "auto":
        return wanted
    from sft_engine.metrics import direction_of

    return direction_of(name)


def is_better(value: float, best: float | None, direction: Direction, margin: float) -> bool:
    """Say whether a value beats the best one by more than the margin; NaN never does."""
    if direction == "max":
        return value > (-math.inf if best is None else best + margin)
    return value < (math.inf if best is None else best - margin)


def check_watched(
    run: Run, metric: str, direction: Literal["auto", "max", "min"], who: str, where: str
) -> None:
    """Find out before training what would stop it at the first evaluation, or make it pointless.

    Args:
        run: Knows splits, task and the plan.
        metric: The one to watch; `auto` for the task's main metric.
        direction: Which way is better; `auto` to go by the name.
        who: The component, for the message.
        where: The key that names the metric.

    Raises:
        RecipeError: there is no validation split, it is not evaluated during training, or nobody
            knows which way the metric is better.
    """
    if "validation" not in run.splits:
        raise RecipeError(
            f"{who} watches the validation split, and the data has none: set `data.validation` to "
            "the share of training examples to hold out, or name the split in `data.splits`"
        )
    evaluation = run.plan.evaluation
    if not evaluation.every_epochs and not evaluation.every_steps:
        raise RecipeError(
            f"`evaluation.every_epochs`: found 0, and {who} needs evaluations during training; set "
            "it to 1, or `evaluation.every_steps`"
        )
    _check_direction(run, metric, direction, where)


def _check_direction(
    run: Run, metric: str, direction: Literal["auto", "max", "min"], where: str
) -> None:
    from sft_engine.metrics import names_for

    try:
        _direction(run.task.main_metric if metric == "auto" else metric, direction)
    except RecipeError as error:
        near = suggest(metric, names_for(run.task.head.kind))
        raise RecipeError(
            f"{where}: found {show_value(metric)}, and nobody knows whether more or less of it is "
            f"better; {f'{near} Or' if near else 'check it, or'} set `direction` beside it"
        ) from error


@dataclass(eq=False, kw_only=True)
class EarlyStopping:
    """Ends training when a validation metric has stopped improving.

    Args:
        metric: Metric of the validation split; `auto` is the task's main metric.
        direction: Whether more or less of it is better; `auto` knows the usual ones.
        patience: Evaluations in a row without improvement that end training.
        min_delta: A value must beat the best one by more than this to count.
        start_after: Evaluations before this point do not count against patience: below 1 a share
            of the run, else steps.
    """

    metric: str = "auto"
    direction: Literal["auto", "max", "min"] = "auto"
    patience: Annotated[int, Ge(1)] = 3
    min_delta: Annotated[float, Ge(0)] = 0.0
    start_after: Annotated[float, Ge(0)] = 0.0
    best: float | None = field(default=None, init=False)
    best_step: int = field(default=0, init=False)
    waited: int = field(default=0, init=False)

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Refuse a run in which there is nothing to watch."""
        check_watched(run, self.metric, self.direction, "early-stopping", _WHERE)

    @hookimpl
    def sft_metrics(self, run: Run, view: View, values: dict[str, float]) -> None:
        """Count evaluations without improvement; ask for the end when patience is used up."""
        seen = watched(run, view, values, self.metric, self.direction, _WHERE)
        if seen is None or run.control.stop:
            return
        step = run.clock.step
        if is_better(seen.value, self.best, seen.direction, self.min_delta):
            self.best, self.best_step, self.waited = seen.value, step, 0
        elif step >= self._first_step(run.clock.total_steps):
            self.waited += 1
        if self.waited >= self.patience:
            run.control.stop = self._reason(seen.name)

    def _first_step(self, total: int) -> float:
        return self.start_after * total if self.start_after < 1 else self.start_after

    def _reason(self, name: str) -> str:
        times = f"{self.waited} evaluation{'s' if self.waited > 1 else ''}"
        if self.best is None:
            return f"early-stopping: validation {name} was not finite in {times}"
        return (
            f"early-stopping: validation {name} has not improved on {self.best:.4g} "
            f"(step {self.best_step}) for {times}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, where it was, and the evaluations since."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]
