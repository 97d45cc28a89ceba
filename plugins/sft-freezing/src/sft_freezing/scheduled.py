"""What every schedule does with its timetable: toggles `requires_grad`, and warms up what has thawed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_engine import Capabilities, RecipeError, hookimpl
from sft_freezing.layers import listed
from sft_freezing.spans import Span, span_of
from sft_freezing.stages import Stage, never_trained, settled, stage_at, thawed_at, warmth

if TYPE_CHECKING:
    from sft_engine import LayerGroup, Run
    from sft_engine.flow import ParameterGroup

FACTOR = "freezing"
"""Under which name the schedule multiplies learning rates."""


class Scheduled:
    """A timetable of layer groups, followed step by step.

    What trains at a step depends on the position in the run alone, so a resumed run, and every process
    of several, is frozen where it would have been.

    Args:
        phases: Names of the phases over which the timetable is spread; in others all groups train.
        rewarm: Steps over which the learning rate of a newly thawed group rises.
    """

    capabilities = Capabilities(replayable=True)
    changes_rates = False
    """Whether `rate` differs between layer groups though nothing is warmed up."""
    reaches_all = False
    """Whether every layer group is meant to train at some time."""

    def __init__(self, phases: Sequence[str] = (), rewarm: int = 0) -> None:
        self.phases, self.rewarm = tuple(phases), rewarm
        self.span = Span(())
        self.stages: list[Stage] = []
        self._groups = 0
        self._trainable: list[tuple[int, Any]] = []
        self._rated: list[tuple[int, ParameterGroup]] = []
        self._shown: Stage | None = None

    def timetable(self, groups: Sequence[LayerGroup], span: Span) -> list[Stage]:
        """Return the stages of the schedule, in the order of time."""
        raise NotImplementedError

    def rate(self, group: int, position: int) -> float:
        """Return the factor on the learning rate of a group that trains at a step of the span."""
        start = thawed_at(self.stages, group, position)
        # What trains from the start has the warm-up of the learning-rate schedule.
        return warmth(position - start, self.rewarm) if start else 1.0

    @hookimpl
    def sft_param_groups(self, groups: list[ParameterGroup]) -> None:
        """Keep layer groups apart, if they will have learning rates of their own."""
        if self.rewarm or self.changes_rates:
            for group in groups:
                group.tags.add(f"layer-group-{group.layer_group}")

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Make the timetable; what something else has frozen before is left alone."""
        self.span = span_of(run.phases, self.phases)
        self._groups = len(run.layer_groups)
        self.stages = settled(self.timetable(run.layer_groups, self.span))
        parameters = dict(run.model.named_parameters())
        self._trainable = [
            (index, parameters[name])
            for index, group in enumerate(run.layer_groups)
            for name in group.parameters
            if parameters[name].requires_grad
        ]
        self._refuse_idle_stages(run.layer_groups)
        if self.rewarm or self.changes_rates:
            self._rated = [(group.layer_group, group) for group in run.parameter_groups]
        if self.reaches_all and not run.clock.step:
            self._say_never_trained(run)

    @hookimpl
    def sft_phase_start(self, run: Run) -> None:
        """Freeze what is frozen at the first step, so that the phase begins as it goes on."""
        self._shown = None
        self._follow(run)

    @hookimpl
    def sft_step_start(self, run: Run) -> None:
        """Freeze and thaw by the timetable, and set the rates of what has thawed."""
        self._follow(run)

    def _follow(self, run: Run) -> None:
        position = self.span.position(run.clock.step)
        stage = Stage(0, frozenset(range(self._groups)))
        if position is not None:
            stage = stage_at(self.stages, position)
        if stage != self._shown:
            self._shown = stage
            for index, parameter in self._trainable:
                parameter.requires_grad_(index in stage.groups)
        for index, group in self._rated:
            at_work = position is not None and index in stage.groups
            group.factors[FACTOR] = self.rate(index, position or 0) if at_work else 1.0

    def _refuse_idle_stages(self, groups: Sequence[LayerGroup]) -> None:
        alive = {index for index, _ in self._trainable}
        for stage in self.stages:
            if stage.start < self.span.steps and not stage.groups & alive:
                names = listed(groups[index] for index in sorted(stage.groups)) or "nothing"
                raise RecipeError(
                    f"`freezing`: from step {stage.start} on only {names} would train, and there is nothing "
                    f"in it that can; the layer groups are {listed(groups)}"
                )

    def _say_never_trained(self, run: Run) -> None:
        idle = never_trained(self.stages, self._groups, self.span.steps)
        if idle:
            names = listed(run.layer_groups[index] for index in idle)
            message = (
                f"the timetable of `[freezing]` never comes to {names}; see `sft-engine groups`"
            )
            run.record({"kind": "notice", "step": 0, "message": message})
