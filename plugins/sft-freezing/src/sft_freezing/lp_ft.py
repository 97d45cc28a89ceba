"""The head first, until a share of the run or until validation is no better; then all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from sft_engine import hookimpl
from sft_freezing import stages
from sft_freezing.scheduled import Scheduled
from sft_freezing.stages import Stage, settled

if TYPE_CHECKING:
    from sft_engine import LayerGroup, Run, View
    from sft_freezing.spans import Span

_WHERE = "`freezing.metric`"


class LPFT(Scheduled):
    """Train the head alone (linear probing), then all from there (fine-tuning).

    Kumar et al. 2022: features are distorted less by a head that fits them already.

    Args:
        until: Share of the run after which all layer groups train, at the latest.
        head: Layer groups, from the head on, that train first.
        patience: Evaluations of the validation split without improvement after which the head counts as
            converged, so that all train from there on; 0 goes by `until` alone.
        metric: The one to watch; `auto` for the task's main metric.
        direction: Whether more or less of it is better; `auto` knows the usual ones.
        min_delta: A value must beat the best one by more than this to count.
        scale: Factor on the learning rate once all train; fine-tuning needs less than a head.
        rewarm: Steps over which the learning rate of what has thawed rises to its full value.
        phases: Names of the phases over which this is spread, in the others all train; empty for all of
            the run.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - options of a recipe
        self,
        until: Annotated[float, Ge(0), Le(1)] = 0.5,
        head: Annotated[int, Ge(1)] = 1,
        patience: Annotated[int, Ge(0)] = 0,
        metric: str = "auto",
        direction: Literal["auto", "max", "min"] = "auto",
        min_delta: Annotated[float, Ge(0)] = 0.0,
        scale: Annotated[float, Gt(0)] = 1.0,
        rewarm: Annotated[int, Ge(0)] = 0,
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(phases, rewarm)
        self.until, self.head, self.patience = until, head, patience
        self.metric, self.min_delta, self.scale = metric, min_delta, scale
        self.direction: Literal["auto", "max", "min"] = direction
        self.changes_rates = scale != 1.0
        self._best: float | None = None
        self._worse = 0
        self._converged: int | None = None

    def timetable(self, groups: Sequence[LayerGroup], span: Span) -> list[Stage]:
        """All train from the given share on, or from where the head had converged."""
        until = span.after_share(self.until)
        if self._converged is not None:
            until = min(until, self._converged)
        return stages.head_first(len(groups), self.head, until)

    def rate(self, group: int, position: int) -> float:
        """Scale the rates once all train."""
        scale = self.scale if position >= self.stages[-1].start else 1.0
        return scale * super().rate(group, position)

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find out before training whether the metric can be watched; make the timetable."""
        if self.patience:
            from sft_engine.builtin.stopping import check_watched

            check_watched(run, self.metric, self.direction, "lp-ft with `patience`", _WHERE)
        super().sft_setup(run)

    @hookimpl
    def sft_metrics(self, run: Run, view: View, values: dict[str, float]) -> None:
        """Count evaluations without improvement while the head trains alone."""
        position = self.span.position(run.clock.step)
        if not self.patience or position is None or position >= self.stages[-1].start:
            return
        from sft_engine.builtin.stopping import is_better, watched

        seen = watched(run, view, values, self.metric, self.direction, _WHERE)
        if seen is None:
            return
        if is_better(seen.value, self._best, seen.direction, self.min_delta):
            self._best, self._worse = seen.value, 0
            return
        self._worse += 1
        if self._worse >= self.patience:
            self._thaw(run, position, f"{seen.name} has not improved on {self._best}")

    def _thaw(self, run: Run, position: int, reason: str) -> None:
        self._converged = position
        self.stages = settled(self.timetable(run.layer_groups, self.span))
        message = f"all layer groups train from here on: {reason} in {self.patience} evaluations"
        run.record({"kind": "notice", "step": run.clock.step, "message": message})

    def state_dict(self) -> dict[str, Any]:
        """Return what validation has said so far."""
        return {"best": self._best, "worse": self._worse, "converged": self._converged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._best, self._worse = state["best"], state["worse"]
        self._converged = state["converged"]
