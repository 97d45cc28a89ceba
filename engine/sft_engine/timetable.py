"""What `sft-engine groups` shows: layer groups, their learning rates, and what trains when.

What trains when is found by asking: the hooks of the freezing component are fired at every step of the
clock, and `requires_grad` is read. So it holds for any plugin, and nothing is trained for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_engine.dispatch import RunHooks

if TYPE_CHECKING:
    from sft_engine.assemble import Assembled
    from sft_engine.flow import Run


@dataclass(frozen=True)
class GroupLine:
    """A layer group.

    Args:
        name: As the backbone calls it.
        parameters: Its weights, counted one by one.
        lr: Learning rate before the schedule; the largest where its parameters have several.
        least_lr: The smallest.
        trains: Steps in which any of it trains, as first step and the step after the last.
    """

    name: str
    parameters: int
    lr: float
    least_lr: float
    trains: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StageLine:
    """What trains from a step on, until the next stage.

    Args:
        step: The first step of it.
        epoch: Epochs done before.
        phase: Name of the phase in which it begins.
        groups: Layer groups of which any parameter trains.
        parameters: Weights that train, counted one by one.
    """

    step: int
    epoch: float
    phase: str
    groups: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Timetable:
    """Layer groups of a recipe and what trains when.

    Args:
        steps: Of the whole run.
        groups: Input first, head last.
        stages: In the order of time.
        phase_lr: The learning rates that phases set for themselves, by their names.
    """

    steps: int
    groups: tuple[GroupLine, ...]
    stages: tuple[StageLine, ...]
    phase_lr: dict[str, float]


def timetable(built: Assembled) -> Timetable:
    """Return the layer groups of an assembled run and what trains when; its clock is at the end then."""
    run = built.run
    parameters = dict(run.model.named_parameters())
    stages = tuple(_stages(run, parameters))
    ends = [stage.step for stage in stages[1:]] + [run.clock.total_steps]
    rates = {
        name: rate
        for group, rate in zip(run.parameter_groups, built.base_lr, strict=True)
        for name in group.names
    }
    groups = []
    for group in run.layer_groups:
        own = [rates[name] for name in group.parameters] or [0.0]
        trains = [
            (stage.step, end)
            for stage, end in zip(stages, ends, strict=True)
            if group.name in stage.groups
        ]
        count = sum(parameters[name].numel() for name in group.parameters)
        groups.append(GroupLine(group.name, count, max(own), min(own), tuple(_joined(trains))))
    phase_lr = {phase.name: phase.lr for phase in run.phases if phase.lr is not None}
    return Timetable(run.clock.total_steps, tuple(groups), stages, phase_lr)


def _stages(run: Run, parameters: dict[str, Any]) -> Iterator[StageLine]:
    """Yield a stage wherever another set of parameters trains than a step before."""
    before: list[bool] | None = None
    for _ in _positions(run):
        now = [parameter.requires_grad for parameter in parameters.values()]
        if now == before:
            continue
        before = now
        training = {name: p.numel() for name, p in parameters.items() if p.requires_grad}
        yield StageLine(
            step=run.clock.step,
            epoch=run.clock.epochs,
            phase=run.phase.name,
            groups=tuple(g.name for g in run.layer_groups if training.keys() & set(g.parameters)),
            parameters=sum(training.values()),
        )


def _positions(run: Run) -> Iterator[None]:
    """Move the clock through the run as the loop does, and let the freezing component follow."""
    hooks = RunHooks([each for each in run.active if each.planned.kind == "freezing"])
    clock = run.clock

    def fire(name: str) -> None:
        hook = getattr(hooks, name)
        if hook is not None:
            hook(run=run)

    fire("sft_setup")
    fire("sft_train_start")
    for index in range(len(run.phases)):
        run.enter_phase(index)
        fire("sft_phase_start")
        while clock.step < clock.phase_end:
            if not clock.window:
                fire("sft_epoch_start")
            fire("sft_step_start")
            yield
            clock.step, clock.window = clock.step + 1, clock.window + 1
            if clock.window == clock.steps_per_epoch:
                fire("sft_epoch_end")
                clock.epoch, clock.window = clock.epoch + 1, 0
        fire("sft_phase_end")


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join spans where one begins at the end of another."""
    current: tuple[int, int] | None = None
    for start, end in spans:
        if current is not None and current[1] == start:
            current = (current[0], end)
            continue
        if current is not None:
            yield current
        current = (start, end)
    if current is not None:
        yield current
