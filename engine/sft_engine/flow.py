"""The data that flows through a run: the Run itself, its clock, batches, loss terms, views.

Nothing in here decides anything; `assemble` fills a Run, `loop` and `evaluation` drive it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import Tensor, nn

    from sft_engine.catalog import Plan, Planned
    from sft_engine.components import Backbone, Examples, LayerGroup, RowTransform, Schedule, Task
    from sft_engine.dispatch import RunHooks
    from sft_engine.replay.replay import Replay


@dataclass(frozen=True)
class Seeds:
    """The four independent seeds of a run (design.md 6.5)."""

    init: int
    order: int
    subset: int
    noise: int


TARGET = "data"
"""The stream that a recipe always has: the training split of its `[data]`."""


def split_of(stream: str) -> str:
    """Return the name in `run.splits` of a stream's examples."""
    return "train" if stream == TARGET else stream


@dataclass(frozen=True)
class Phase:
    """A part of the run that is trained in turn, with objective, length and learning rate of its own.

    Args:
        name: As in the recipe; `train` if the recipe has no phases.
        streams: Weight of each stream in the objective, by its name; each is in every window.
        steps: Optimizer steps.
        steps_per_epoch: Windows of one pass over `data`, or over the first stream if it is not there.
        lr: Replaces the optimizer's learning rate; None keeps it.
        start: Steps of all phases before.
        first_epoch: Epochs, begun ones too, of all phases before.
    """

    name: str
    streams: Mapping[str, float]
    steps: int
    steps_per_epoch: int
    lr: float | None = None
    start: int = 0
    first_epoch: int = 0


@dataclass
class Clock:
    """Where the run is; the whole of what freezing and schedules may depend on.

    Args:
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Windows of one epoch of the current phase.
        step: Windows finished so far in the run.
        epoch: Index of the current epoch, counted over all phases.
        window: Windows finished in the current epoch.
        phase: Index of the current phase.
        phase_start: Step at which the current phase began.
        phase_steps: Steps of the current phase; 0 means all of the run.
        phase_epoch: Index of the first epoch of the current phase.
    """

    total_steps: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    window: int = 0
    phase: int = 0
    phase_start: int = 0
    phase_steps: int = 0
    phase_epoch: int = 0

    def __post_init__(self) -> None:
        self.phase_steps = self.phase_steps or self.total_steps

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return self.step / self.total_steps

    @property
    def phase_progress(self) -> float:
        """Share of the current phase that is done, 0..1."""
        return (self.step - self.phase_start) / self.phase_steps

    @property
    def phase_end(self) -> int:
        """Step at which the current phase has ended."""
        return self.phase_start + self.phase_steps

    @property
    def epochs(self) -> float:
        """Epochs done, with the part of the current one: what records show."""
        return self.phase_epoch + (self.step - self.phase_start) / max(self.steps_per_epoch, 1)

    @property
    def position(self) -> dict[str, int]:
        """The part that a checkpoint keeps."""
        return {k: getattr(self, k) for k in ("step", "epoch", "window", "phase")}

    def follow(self, phase: Phase) -> None:
        """Take over what the current phase says; the position stays as it is."""
        self.steps_per_epoch = phase.steps_per_epoch
        self.phase_start, self.phase_steps = phase.start, phase.steps
        self.phase_epoch = phase.first_epoch


@dataclass(slots=True)
class Batch:
    """A micro-batch.

    Args:
        inputs: What the model takes, by name; first dimension = examples.
        targets: What the task's loss takes, by name.
        ids: Index of each example in its split.
        units: What this micro-batch counts of each unit: `item`, `token`.
        real: False for the stand-in of a rank that has nothing in this micro-step; its loss counts 0.
        split: Name of the split that the examples are of; empty if they are of none.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    ids: list[int]
    units: dict[str, float] = field(default_factory=dict)
    real: bool = True
    split: str = ""

    def to(self, device: torch.device) -> None:
        """Move the tensors in place."""
        for tensors in (self.inputs, self.targets):
            for name, value in tensors.items():
                if value.ndim and not any(value.stride()):
                    # One number for all, such as a stand-in of replay: it is moved, not a copy for each.
                    one = value[(0,) * value.ndim]
                    tensors[name] = one.to(device).expand(value.shape)
                else:
                    tensors[name] = value.to(device, non_blocking=True)


@dataclass(slots=True)
class LossTerm:
    """A named part of the loss.

    Args:
        name: Under which it is logged.
        value: Scalar; the sum over its units in this micro-batch (for `step`: the value itself).
        weight: Factor in the total.
        per: The unit it is divided by: a key of `Batch.units`, or `step` for a term that does not
            depend on the batch and counts once a window however many micro-batches and ranks.
    """

    name: str
    value: Tensor
    weight: float = 1.0
    per: str = "item"


class Action(enum.IntEnum):
    """What to do with a step, strictest last."""

    STEP = 0
    SKIP = 1
    ROLL_BACK = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """A component's judgement of a step, with the reason that the log will show."""

    action: Action
    reason: str


@dataclass
class ParameterGroup:
    """Parameters that share learning-rate scale and weight decay.

    Args:
        names: Full parameter names.
        layer_group: Index in `run.layer_groups`.
        lr_scale: Factor on the optimizer's learning rate.
        weight_decay: Replaces the optimizer's own; None keeps it.
        tags: Free words that components may leave for each other, such as `no-decay`.
        factors: Further factors on the learning rate, by who sets them, such as the re-warm-up of what
            has thawed; may change from step to step, in `sft_step_start`.
    """

    names: list[str]
    layer_group: int
    lr_scale: float = 1.0
    weight_decay: float | None = None
    tags: set[str] = field(default_factory=set)
    factors: dict[str, float] = field(default_factory=dict)


@dataclass
class Split:
    """One split of the data, raw and encoded.

    Args:
        name: `train`, `validation`, `test` or any other that the source has.
        rows: Raw rows, columns renamed to roles, target prepared by the task.
        examples: The same rows encoded, in the same order.
        weights: Sampler weights; None draws every example once an epoch.
        transforms: Changes of raw rows in training; if there are any, rows are encoded on the fly.
        target_names: Which of the tensors that `examples.take` returns are targets; found at first use.
    """

    name: str
    rows: Dataset
    examples: Examples
    weights: np.ndarray | None = None
    transforms: list[RowTransform] = field(default_factory=list)
    target_names: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class View:
    """A way to look at a split: which model, through which change of the data.

    Args:
        name: Empty for the plain view; else the prefix of its metrics.
        model: Replaces the run's model (unwrapped); None keeps it.
        transform: Changes raw rows before they are encoded.
        perturb: Changes an encoded batch on the device; may use gradients.
        tags: Such as severity, for reports.
        ids: Which examples to look at, each once; None for the whole split.
        seed: Decides, with the id of an example, the draws of `transform`; None leaves it to the name.
    """

    name: str = ""
    model: nn.Module | None = None
    transform: RowTransform | None = None
    perturb: Callable[[Run, Batch], None] | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    ids: Sequence[int] | None = None
    seed: int | None = None

    def examples(self, split: Split) -> np.ndarray:
        """Return the ids of the examples that are looked at, the smallest first."""
        import numpy as np

        return np.arange(len(split)) if self.ids is None else np.unique(self.ids)


@dataclass
class Control:
    """How components ask the loop for something; read at step ends, agreed across ranks.

    Args:
        stop: Why training shall end after this step; empty to go on.
        evaluate: Evaluate after this step.
        save: Save a checkpoint after this step.
    """

    stop: str = ""
    evaluate: bool = False
    save: bool = False


@dataclass(frozen=True)
class Active:
    """A component that this run uses, with what the plan knew of it."""

    planned: Planned
    component: Any

    @property
    def key(self) -> str:
        """Where it stands in the recipe, such as `optimizer` or `regularizer[0]`; names its state."""
        return self.planned.key


@dataclass
class Run:
    """Everything that one run consists of. Components get it in every hook.

    Args:
        plan: The checked recipe.
        folder: Where the run writes; only rank 0 does.
        seeds: The four seeds.
        accelerator: Process group, device, wrapping.
        task: The task component.
        backbone: The backbone component.
        splits: Data by split name.
        active: Components in the order of the recipe.
        hooks: Hook callers with those components.
        model: The model itself, never the wrapper.
        wrapped: What forward passes go through: the model, or DDP/FSDP/compile around it.
        layer_groups: Input first, head last.
        parameter_groups: As the optimizer was built from.
        optimizer: The torch optimizer; holds every parameter, frozen or not.
        schedule: Learning rate over the run.
        clock: The position.
        phases: The phases of the recipe, or the one that a recipe without phases has.
        control: Requests of components.
        metrics: The latest metrics by `SPLIT/NAME`.
        evaluating: The split that is being evaluated; empty otherwise.
        trainable: Which parameters required gradients when the model was last wrapped.
        skeleton: The model without weights, to save it with; None unless parameters are sharded.
        reopened: The run has ended, and its model was read from `model/`.
        record: Write a record to metrics.jsonl and the trackers (rank 0 writes, all may call).
        forward: Run the wrapped model on a batch's inputs inside autocast.
        forward_backward: Run one inner step on a batch, adding to the gradients.
        replay_window: Compute the gradients of the current window again, from zero.
        replay: Answers for the frozen part of the model; None where there is nothing of the kind.
    """

    plan: Plan
    folder: Path
    seeds: Seeds
    accelerator: Accelerator
    task: Task
    backbone: Backbone
    splits: dict[str, Split]
    active: list[Active]
    hooks: RunHooks
    model: nn.Module
    wrapped: nn.Module
    layer_groups: list[LayerGroup]
    parameter_groups: list[ParameterGroup]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    clock: Clock
    phases: tuple[Phase, ...] = ()
    control: Control = field(default_factory=Control)
    metrics: dict[str, float] = field(default_factory=dict)
    evaluating: str = ""
    trainable: list[bool] = field(default_factory=list)
    skeleton: nn.Module | None = None
    reopened: bool = False
    record: Callable[[dict[str, Any]], None] = field(default=None)  # type: ignore[assignment]
    forward: Callable[[Batch], Any] = field(default=None)  # type: ignore[assignment]
    forward_backward: Callable[[Batch], None] = field(default=None)  # type: ignore[assignment]
    replay_window: Callable[[], None] = field(default=None)  # type: ignore[assignment]
    replay: Replay | None = None

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[self.clock.phase]

    @property
    def phase_note(self) -> dict[str, str]:
        """What a record says of the phase: its name, if the run has several."""
        return {"phase": self.phase.name} if self.phases[1:] else {}

    def enter_phase(self, index: int) -> None:
        """Move the clock to the begin of a phase; an epoch that had been begun is over."""
        clock = self.clock
        clock.phase, clock.epoch, clock.window = index, self.phases[index].first_epoch, 0
        clock.follow(self.phase)

    @property
    def device(self) -> torch.device:
        """Where tensors of this rank live."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return bool(self.accelerator.is_main_process)

    def group_of(self, name: str) -> int:
        """Return the index of the layer group that holds a parameter."""
        for index, group in enumerate(self.layer_groups):
            if name in group.parameters:
                return index
        raise KeyError(name)
