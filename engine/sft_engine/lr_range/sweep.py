"""The range test itself: train with a rising learning rate, write down the loss, put everything back."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sft_engine.assemble import assemble, derive_seeds
from sft_engine.checkpoint import capture, restore
from sft_engine.devices import enough_memory, own_state, wrap
from sft_engine.dispatch import note_component
from sft_engine.errors import DivergedError, Interrupted, RecipeError
from sft_engine.interruption import Signals
from sft_engine.loop import Interval, Loop
from sft_engine.lr_range.curve import Smoother, Suggestion, explodes, rate_at, suggest
from sft_engine.state import clone

if TYPE_CHECKING:
    from sft_engine.assemble import Assembled
    from sft_engine.catalog import Plan
    from sft_engine.lr_range.applying import Change

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """How a range test goes.

    Args:
        lowest: Learning rate of the first step.
        highest: Learning rate of the last step, if the loss does not explode before.
        steps: Optimizer steps.
        smoothing: Weight of the past in the moving average of the loss.
        explosion: The test ends when the smoothed loss is this many times the lowest one so far.
    """

    lowest: float = 1e-7
    highest: float = 10.0
    steps: int = 100
    smoothing: float = 0.9
    explosion: float = 4.0


DEFAULT = RangeSettings()


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Args:
        key: The key of the recipe that it is about: `optimizer.lr`, or that of the first phase.
        before: What the recipe says there now.
        lrs: The learning rate of each step.
        losses: The loss of each step, with all its terms.
        smoothed: The same, smoothed.
        reason: Why the test ended.
        suggestions: Learning rates by the name of the rule; empty if the loss never fell.
        applied: What was changed in the recipe file, if anything.
    """

    key: str
    before: float
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    reason: str = ""
    suggestions: dict[Suggestion, float] = field(default_factory=dict)
    applied: Change | None = None

    def chosen(self, rule: Suggestion) -> float:
        """Return what a rule suggests.

        Raises:
            RecipeError: there is nothing that it could go by.
        """
        if rule in self.suggestions:
            return self.suggestions[rule]
        raise RecipeError(
            f"the range test suggests no `{self.key}`: {self.reason}, after {len(self.lrs)} steps "
            "in which the loss never clearly fell; use more --steps, a smaller --min or a larger --max, or "
            "look whether the recipe can learn at all"
        )


def find(plan: Plan, settings: RangeSettings, say: Say = lambda _: None) -> RangeTest:
    """Build what a recipe describes, run a range test on it, and leave nothing behind.

    Trackers of the recipe are left out: nothing but the result is for anyone to see.

    Args:
        plan: The checked recipe.
        settings: How the test goes.
        say: Shows a line.

    Raises:
        SftError: whatever stopped it, as one sentence.
    """
    plan = replace(plan, components=tuple(c for c in plan.components if c.kind != "tracker"))
    with (
        Signals() as signals,
        own_state(derive_seeds(plan.seeds).noise),
        tempfile.TemporaryDirectory(prefix="sft-lr-find-") as scratch,
        enough_memory("set a smaller `train.micro_batch_size`, or take a smaller backbone"),
    ):
        built = assemble(plan, Path(scratch), signals.check)
        run = built.run
        run.record = lambda _: None
        error: BaseException | None = None
        try:
            if run.hooks.sft_setup is not None:
                run.hooks.sft_setup(run=run)
            return range_test(built, settings, say=say, signals=signals)
        except BaseException as caught:
            error = caught
            note_component(caught, run.active)
            raise
        finally:
            if run.hooks.sft_teardown is not None:
                run.hooks.sft_teardown(run=run, error=error)


def range_test(
    built: Assembled,
    settings: RangeSettings,
    *,
    say: Say = lambda _: None,
    signals: Signals | None = None,
) -> RangeTest:
    """Train an assembled run with a rising learning rate, and put it back as it was, bit for bit.

    All parameter groups keep their ratio to `optimizer.lr`; clipping, accumulation, precision and all
    components work as in training. The recipe's own schedule, momentum included, is left out.

    Args:
        built: The run, at any position; its components are set up.
        settings: How the test goes.
        say: Shows a line.
        signals: Ask it to stop.

    Raises:
        Interrupted: a signal came; the run is as it was.
        DivergedError: the very first step failed.
        RecipeError: the recipe's own learning rate is 0, so nothing can be in a ratio to it.
    """
    key, base = _own_rate(built)
    trial = _Trial(settings, base, say, built.run.clock.step - built.run.clock.phase_start)
    with _put_back(built):
        _make_room(built, settings.steps)
        built.run.schedule = trial
        built.run.record = trial.see
        loop = _loop(built, signals or Signals(), trial)
        try:
            loop.train()
        except _Ended:
            pass
        except Interrupted as error:
            raise Interrupted(
                "interrupted in the range test: nothing was changed, run the same command again"
            ) from error
        except DivergedError as error:
            if not trial.lrs:
                raise
            trial.reason = trial.reason or f"training diverged at {trial.lr:.2g}: {error}"
    return RangeTest(
        key=key,
        before=base,
        lrs=trial.lrs,
        losses=trial.losses,
        smoothed=trial.smoothed,
        reason=trial.reason,
        suggestions=suggest(trial.lrs, trial.smoothed),
    )


def _own_rate(built: Assembled) -> tuple[str, float]:
    """Return the key that decides the learning rate of the run's phase, and its value."""
    run = built.run
    optimizer = next(a.component for a in run.active if a.planned.kind == "optimizer")
    own = run.phase.lr
    key = "optimizer.lr" if own is None else f"phase[{run.clock.phase}].lr"
    rate = float(optimizer.lr if own is None else own)
    if rate <= 0:
        raise RecipeError(
            f"`{key}`: found {rate:g}, and the range test keeps the ratio of all parameter groups to it; "
            "set any number above 0"
        )
    return key, rate


class _Ended(Exception):
    """Leaves the loop at once: what follows training, such as averaging weights, is not wanted."""


class _Trial:
    """A schedule that sweeps the learning rate, and a recorder that watches the loss."""

    def __init__(self, settings: RangeSettings, base: float, say: Say, first: int) -> None:
        self.settings, self.base, self.say, self.first = settings, base, say, first
        self.lr = 0.0
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.reason = ""
        self._smoother = Smoother(settings.smoothing)

    def factor(self, step: int, total: int) -> float:  # noqa: ARG002 (the loop's contract)
        """Return the share of the recipe's learning rate at this step."""
        wanted = self.settings
        self.lr = rate_at(step - self.first, wanted.steps, wanted.lowest, wanted.highest)
        return self.lr / self.base

    def see(self, record: dict[str, Any]) -> None:
        """Take in the loss of a step; end the test where it explodes or all steps are done."""
        if record["kind"] != "train":
            self.say(str(record.get("message", record.get("reason", ""))))
            return
        loss = float(record["loss"])
        smoothed = self._smoother.add(loss)
        best = min(self.smoothed, default=math.inf)
        if math.isfinite(loss):
            self.lrs.append(self.lr)
            self.losses.append(loss)
            self.smoothed.append(smoothed)
            self._show(len(self.lrs), loss)
        if self.losses[1:] and explodes(smoothed, best, self.settings.explosion):
            self.end(f"the loss exploded at {self.lr:.2g}")
        if len(self.lrs) == self.settings.steps:
            self.end("all steps done")

    def end(self, reason: str) -> NoReturn:
        """Leave the loop."""
        self.reason = reason
        raise _Ended

    def _show(self, done: int, loss: float) -> None:
        if done % max(1, self.settings.steps // 10) == 0:
            self.say(f"step {done:>4}/{self.settings.steps}  lr {self.lr:<8.2g} loss {loss:.4g}")


def _loop(built: Assembled, signals: Signals, trial: _Trial) -> Loop:
    """Return the loop of a training run that records every step, evaluates nothing and saves nothing."""
    return Loop(
        run=built.run,
        feed=built.feed,
        precision=built.precision,
        signals=signals,
        wrap=wrap,
        evaluate=lambda: None,
        save=lambda: None,
        base_lr=built.base_lr,
        evaluate_every=Interval(),
        save_every=Interval(),
        log_every=1,
        clip_norm=built.run.plan.train.clip_norm,
        roll_back=lambda: trial.end(f"a component rolled the step back at {trial.lr:.2g}"),
    )


def _make_room(built: Assembled, steps: int) -> None:
    """Lengthen the current phase where it has fewer steps left than the test needs."""
    run, clock = built.run, built.run.clock
    missing = clock.step + steps - clock.phase_end
    if missing > 0:
        phases = list(run.phases)
        phases[clock.phase] = replace(run.phase, steps=run.phase.steps + missing)
        run.phases = built.feed.phases = tuple(phases)
        clock.total_steps += missing
        clock.follow(run.phase)


_ATTRIBUTES = (
    "schedule",
    "phases",
    "record",
    "forward",
    "forward_backward",
    "replay_window",
    "replay",
    "wrapped",
    "trainable",
)


@contextlib.contextmanager
def _put_back(built: Assembled) -> Iterator[None]:
    """Give back weights, optimizer, components, generators, position and flags as they were."""
    run, feed, scaler = built.run, built.feed, built.precision.scaler
    state = clone(capture(run))
    attributes = {name: getattr(run, name) for name in _ATTRIBUTES}
    trains = [(p, p.requires_grad) for p in run.model.parameters()]
    modes = [(m, m.training) for m in run.model.modules()]
    factors = [(group, dict(group.factors)) for group in run.parameter_groups]
    sizes = [(f, f.micro_batch_size) for f in feed.feeds.values()]
    scale = scaler.state_dict() if scaler is not None else {}
    total, control = run.clock.total_steps, replace(run.control)
    # Replay keeps what frozen parts give over many epochs; a hundred steps would not see it pay.
    run.replay = None
    try:
        yield
    finally:
        for name, value in attributes.items():
            setattr(run, name, value)
        for parameter, flag in trains:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
        for group, own in factors:
            group.factors = own
        for each, size in sizes:
            each.micro_batch_size = size
        if scaler is not None:
            scaler.load_state_dict(scale)
        run.clock.total_steps, run.control = total, control
        restore(run, state)
        feed.phases = run.phases
        feed.enter(run.clock.phase)
