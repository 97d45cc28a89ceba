"""The search: one trial after the other until there are enough, by as many processes as one likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.catalog import plan as make_plan
from sft_engine.errors import (
    DataError,
    DivergedError,
    Interrupted,
    OutOfMemoryError,
    RecipeError,
    SftError,
)
from sft_engine.metrics import direction_of
from sft_engine.recipe import Recipe, load_recipe
from sft_engine.records import write_text
from sft_engine.tuning.space import Domain, read_space
from sft_engine.tuning.store import FOLDER, REASON, Store, Terms, is_spent, require_optuna
from sft_engine.tuning.trials import Result, Watcher, carry_out

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from sft_engine.catalog import Plan
    from sft_engine.interruption import Signals

Say = Callable[[str], None]
UNTESTED = "evaluation.test=false"
"""Trials do not see the test split: who compares a hundred of them would choose by it."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a search goes.

    Args:
        trials: How many shall have ended, over all processes and repeated commands.
        metric: Of the validation split; empty for `checkpoint.best`, or the task's main metric.
        seed: Of the sampler.
        prune: End a trial early if its best value so far is worse than the median of the others at the
            same evaluation; not before five trials are complete.
    """

    trials: int
    metric: str = ""
    seed: int = 0
    prune: bool = True


@dataclass(frozen=True)
class TrialRow:
    """A trial as the table shows it.

    Args:
        name: Of its run folder.
        state: `complete`, `pruned`, `failed` or `running`.
        value: The metric; None if there is none.
        values: What was tried, by key.
        reason: Why it failed.
    """

    name: str
    state: str
    value: float | None
    values: dict[str, str]
    reason: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search has found so far.

    Args:
        folder: Of the study.
        metric: What trials are compared by.
        direction: `max` or `min`.
        trials: In the order in which they were begun.
        best: The best complete one; None if none is complete.
        recipe: Its recipe.
    """

    folder: Path
    metric: str
    direction: str
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    recipe: Path | None


def search(
    recipe: Recipe,
    overrides: Sequence[str],
    folder: Path,
    settings: TuneSettings,
    signals: Signals,
    say: Say = lambda _: None,
) -> Tuned:
    """Search for the values of a recipe's keys that are best on the validation split.

    Args:
        recipe: The recipe.
        overrides: `KEY=VALUE` texts; those with a domain, such as `log(1e-6, 1e-3)`, are searched.
        folder: Of the study; if it holds this one already, it goes on.
        settings: How the search goes.
        signals: Open already.
        say: Shows a line.

    Raises:
        RecipeError: the recipe, a value of the space or the metric is wrong, or Optuna is missing.
        OutputError: the folder cannot be used.
        Interrupted: a signal came; the same command goes on.
    """
    study = Search(*_prepared(recipe, overrides, settings, folder), settings, signals, say)
    while (trial := study.store.begin(settings.trials)) is not None:
        study.try_out(trial)
        study.write_best()
    return study.write_best()


def _prepared(
    recipe: Recipe, overrides: Sequence[str], settings: TuneSettings, folder: Path
) -> tuple[Store, Trials]:
    """Check everything before the first trial; return the store, and what makes the trials' recipes."""
    space, fixed = read_space(overrides)
    require_optuna()
    checked = check_space(Trials(recipe, tuple(fixed)), space)
    metric, direction = _compared_by(checked, settings.metric)
    if settings.metric and checked.checkpoint.best != "last":
        fixed.append(f"checkpoint.best={settings.metric}")
    texts = {key: domain.text for key, domain in space.items()}
    terms = Terms(recipe.to_toml(), fixed, texts, metric, direction, settings.seed)
    return Store(folder, terms, space), Trials(recipe, tuple(fixed))


@dataclass(frozen=True)
class Trials:
    """What all trials have in common.

    Args:
        recipe: As the file says.
        fixed: Overrides that hold for every trial. They are applied together with those of a trial: a
            `use` that a trial chooses drops the options of another component, but not these.
    """

    recipe: Recipe
    fixed: tuple[str, ...]

    def recipe_with(self, overrides: Sequence[str]) -> Recipe:
        """Return the recipe of a trial."""
        return self.recipe.with_overrides([*self.fixed, *overrides])


def check_space(trials: Trials, space: dict[str, Domain]) -> Plan:
    """Check the recipe with every value to choose from, and with both ends of each range.

    Raises:
        RecipeError: one of them is not allowed.
    """

    def plan(values: dict[str, str]) -> Plan:
        return make_plan(trials.recipe_with([f"{key}={value}" for key, value in values.items()]))

    first = {key: domain.samples[0] for key, domain in space.items()}
    checked = plan(first)
    for key, domain in space.items():
        for value in domain.samples[1:]:
            plan({**first, key: value})
    return checked


def _compared_by(plan: Plan, wanted: str) -> tuple[str, str]:
    """Return the metric and which way it is better.

    Raises:
        RecipeError: nobody knows which way.
    """
    task = plan.one("task")
    assert task is not None
    own = plan.checkpoint.best
    metric = wanted or (task.build().main_metric if own in ("auto", "last") else own)
    if plan.checkpoint.direction != "auto":
        return metric, plan.checkpoint.direction
    try:
        return metric, direction_of(metric)
    except RecipeError as error:
        raise RecipeError(
            f"nobody knows whether more or less of the metric {metric!r} is better: add "
            "`--set checkpoint.direction=max`, or min"
        ) from error


@dataclass
class Search:
    """The part of one process in a study.

    Args:
        store: The study.
        trials: What makes their recipes.
        settings: How the search goes.
        signals: Ask it to stop.
        say: Shows a line.
    """

    store: Store
    trials: Trials
    settings: TuneSettings
    signals: Signals
    say: Say

    def try_out(self, trial: Trial) -> None:
        """Carry out a trial and write down how it ended.

        A run that diverges, or for which memory does not suffice, is a result, too: such values are
        bad. Whatever else stops a run is for the user to put right; the trial is tried again then.
        """
        folder, name = self.store.folder_of(trial), self.store.folder_of(trial).name
        overrides = self.store.overrides_of(trial)
        self.say(f"{name}  {'  '.join(overrides)}")
        watcher = Watcher(self.store.terms.metric, self._judge(trial), self.settings.prune)
        try:
            self.signals.check()
            result = carry_out(
                lambda path: self._plan(path, overrides), folder, watcher, self.signals
            )
        except (DivergedError, OutOfMemoryError) as error:
            self.store.end(trial, reason=str(error))
            self.say(f"{name}  failed: {error}")
        except BaseException as error:
            self.store.give_back(trial)
            if isinstance(error, Interrupted):
                raise Interrupted(f"{name} was interrupted: the same command goes on") from error
            if isinstance(error, (DataError, RecipeError)):
                self.store.discard()
            if isinstance(error, SftError):
                error.add_note(f"in {name}: {', '.join(overrides)}")
            raise
        else:
            self._end(trial, name, result)

    def _plan(self, path: Path | None, overrides: list[str]) -> Plan:
        if path is not None:
            return make_plan(load_recipe(path))
        return make_plan(self.trials.recipe_with([*overrides, UNTESTED]))

    def _judge(self, trial: Trial) -> Callable[[int, float], bool]:
        """Return what reports an evaluation, and says whether the trial has fallen behind."""
        reported = set()
        for number, value in self.store.earlier_values(trial).items():
            trial.report(value, number)
            reported.add(number)

        def judge(number: int, value: float) -> bool:
            if number in reported:
                return False
            reported.add(number)
            trial.report(value, number)
            return trial.should_prune()

        return judge

    def _end(self, trial: Trial, name: str, result: Result) -> None:
        metric = self.store.terms.metric
        if not math.isfinite(result.value):
            self.store.end(trial, reason=f"{metric} is {result.value}")
        else:
            self.store.end(trial, None if result.pruned else result.value)
        self.say(f"{name}  {metric} {result.value:.4g}{'  pruned' if result.pruned else ''}")

    def write_best(self) -> Tuned:
        """Write `best.toml` and return the state of the study."""
        store, terms = self.store, self.store.terms
        trials = store.study.get_trials(deepcopy=False)
        complete = [t for t in trials if t.state.name == "COMPLETE"]
        sign = 1 if terms.direction == "max" else -1
        best = max(complete, key=lambda t: sign * float(t.value or 0.0), default=None)
        path = store.folder / "best.toml"
        if best is not None:
            write_text(path, self._recipe_of(best, len(complete)))
        shown = (
            t
            for t in trials
            if is_spent(t) or (t.state.name == "RUNNING" and FOLDER in t.user_attrs)
        )
        rows = {t.number: self._row(t) for t in shown}
        return Tuned(
            folder=store.folder,
            metric=terms.metric,
            direction=terms.direction,
            trials=tuple(rows.values()),
            best=None if best is None else rows[best.number],
            recipe=None if best is None else path,
        )

    def _recipe_of(self, best: FrozenTrial, complete: int) -> str:
        overrides = self.store.overrides_of(best)
        return (
            f"# Best of {complete} complete trials: validation {self.store.terms.metric} {best.value:.6g} "
            f"({self.store.folder_of(best).name})\n# {'  '.join(overrides)}\n\n"
            + self.trials.recipe_with(overrides).to_toml()
        )

    def _row(self, trial: FrozenTrial) -> TrialRow:
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        values: dict[str, Any] = {
            key: domain.write(trial.params[key])
            for key, domain in self.store.space.items()
            if key in trial.params
        }
        reason = str(trial.user_attrs.get(REASON, ""))
        return TrialRow(self.store.folder_of(trial).name, state, trial.value, values, reason)
