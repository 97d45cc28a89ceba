"""The training loop: phases, epochs and windows; it knows hooks, never methods.

    train_start
      phase_start
        epoch_start
          step_start
            [batch  micro_step( forward  loss_terms  backward )] for each micro-batch
            gradients  (clip)  step_verdict  (optimizer step)  step_end
          ... evaluation and checkpoint where due
        epoch_end
      phase_end
    train_end

One window is one optimizer step; what happens inside its brackets is in `gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import order, ranks
from sft_engine.clipping import clip_gradients
from sft_engine.devices import Precision, seed_noise
from sft_engine.errors import DivergedError, Interrupted, RecipeError
from sft_engine.flow import TARGET, Action, Verdict
from sft_engine.gradients import Gradients
from sft_engine.ledger import Ledger
from sft_engine.modes import set_training_modes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from sft_engine.diagnosis.vitals import Vitals
    from sft_engine.feed import Window
    from sft_engine.flow import Clock, Run
    from sft_engine.interruption import Signals
    from sft_engine.streams import Streams


@dataclass(frozen=True)
class Interval:
    """How often something is due.

    Args:
        steps: Steps of the run in between; 0 for `epochs`.
        epochs: Epochs of the current phase in between; 0 for never.
    """

    steps: int = 0
    epochs: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.steps or self.epochs)

    def within(self, clock: Clock) -> tuple[int, int]:
        """Return the interval in steps (0 for never) and the step from which it counts."""
        if self.steps or not self.epochs:
            return self.steps, 0
        return max(1, round(self.epochs * clock.steps_per_epoch)), clock.phase_start


@dataclass
class Loop:
    """One training loop over a Run.

    Args:
        run: What is trained.
        feed: This rank's batches of every stream.
        precision: Autocast and, for fp16, the gradient scaler.
        signals: Says whether the run was asked to stop.
        wrap: Wraps the model anew after `requires_grad` has changed.
        evaluate: Evaluates the validation split.
        save: Saves a checkpoint.
        base_lr: Learning rate of each parameter group before the schedule.
        evaluate_every: Between evaluations.
        save_every: Between checkpoints; never also means that the end of the run is not saved.
        log_every: Steps between records.
        clip_norm: Largest gradient norm; 0 for no clipping.
        keep_snapshot: Called before a step at `log_every` if a component may roll back.
        roll_back: Puts the weights and the optimizer back to the latest snapshot.
        stop_after: Interrupt as if by a signal before the step with this index; -1 for never.
        vitals: Measures gradients and updates by layer group at some of the records.
    """

    run: Run
    feed: Streams
    precision: Precision
    signals: Signals
    wrap: Callable[..., None]
    evaluate: Callable[[], None]
    save: Callable[[], None]
    base_lr: list[float]
    evaluate_every: Interval
    save_every: Interval
    log_every: int
    clip_norm: float
    keep_snapshot: Callable[[], None] | None = None
    roll_back: Callable[[], None] | None = None
    stop_after: int = -1
    vitals: Vitals | None = None
    ledger: Ledger = field(init=False)
    gradients: Gradients = field(init=False)
    _ids: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.run)
        self.gradients = Gradients(self.run, self.feed, self.precision, self.wrap, self.ledger)
        hooks = self.run.hooks
        self._noise = order.mix(self.run.seeds.noise)
        self._step_draws = hooks.sft_step_start is not None
        self._end_draws = any((hooks.sft_gradients, hooks.sft_step_verdict, hooks.sft_step_end))
        self._momentum = getattr(self.run.schedule, "momentum", None)
        # What one rank asks for, all must do; without a component nobody asks.
        several = self.feed.world > 1
        self._steps_ask = several and any(getattr(hooks, name) for name in _IN_STEPS)
        self._evaluations_ask = several and any(getattr(hooks, name) for name in _IN_EVALUATIONS)
        self._ends_ask = several and hooks.sft_phase_end is not None

    # --- phases and epochs -----------------------------------------------------------------------

    def train(self) -> str:
        """Train from the clock's position to the end; return why training ended."""
        run, hooks = self.run, self.run.hooks
        run.model.train()
        _fire(hooks.sft_train_start, run)
        self._phase()
        while run.clock.phase + 1 < len(run.phases) and not run.control.stop:
            run.enter_phase(run.clock.phase + 1)
            self._phase()
        _fire(hooks.sft_train_end, run)
        return run.control.stop or "all steps done"

    def _phase(self) -> None:
        """Train from the clock's position to the end of its phase."""
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        self.feed.enter(clock.phase)
        self.gradients.enter_phase()
        self._rates = self._phase_rates()
        self._evaluate_every = self.evaluate_every.within(clock)
        self._save_every = self.save_every.within(clock)
        _fire(hooks.sft_phase_start, run)
        self.gradients.follow_freezing(first=True)
        while clock.step < clock.phase_end and not run.control.stop:
            self._epoch()
        self._require_finite()
        _fire(hooks.sft_phase_end, run)
        if self._ends_ask:
            self._agree_on_control()

    def _phase_rates(self) -> list[float]:
        """Return the learning rate of each parameter group in this phase, before the schedule."""
        lr = self.run.phase.lr
        if lr is None:
            return self.base_lr
        return [lr * group.lr_scale for group in self.run.parameter_groups]

    def _epoch(self) -> None:
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        if hooks.sft_epoch_start is not None:
            hooks.sft_epoch_start(run=run)
            self.gradients.follow_freezing()
        for window in self.feed.epoch(clock.step - clock.phase_start):
            self.window(window)
            if clock.window == clock.steps_per_epoch:
                _fire(hooks.sft_epoch_end, run)
                clock.epoch, clock.window = clock.epoch + 1, 0
            self._between_steps()
            if run.control.stop:
                return

    def _between_steps(self) -> None:
        """Do what is due after a step: a record, an evaluation, a checkpoint."""
        run, step = self.run, self.run.clock.step
        if self._steps_ask:
            self._agree_on_control()
        last = step >= run.clock.total_steps
        evaluate = last or run.control.evaluate or _due(step, *self._evaluate_every)
        save = (last and bool(self.save_every)) or run.control.save or _due(step, *self._save_every)
        # The next phase may have other terms, of which this one's record must not be a part.
        if evaluate or save or _due(step, self.log_every) or step == run.clock.phase_end:
            self._require_finite()
            self._record()
        if evaluate:
            self.evaluate()
            set_training_modes(run.model)
            if self._evaluations_ask:
                self._agree_on_control()
        ends = bool(self.save_every) and bool(run.control.stop)
        if save or run.control.save or ends:
            self.save()
        run.control.evaluate = run.control.save = False
        if evaluate or save:
            self.ledger.restart_clock()

    def _agree_on_control(self) -> None:
        """Make what one rank asks for known to all, before any of them acts on it."""
        control = self.run.control
        asked = torch.tensor(
            [bool(control.stop), control.evaluate, control.save], dtype=torch.uint8
        )
        stop, evaluate, save = map(bool, ranks.largest_of_all(asked).tolist())
        control.evaluate, control.save = evaluate, save
        if stop:
            reasons = ranks.everyones(self.run.accelerator, control.stop)
            control.stop = next(filter(None, reasons))

    def _record(self) -> None:
        if self.vitals is not None:
            self.ledger.measured(self.vitals.reading())
        record = self.ledger.record()
        if record is not None:
            self.run.record(record)
            self.ledger.restart_clock()

    # --- one window = one optimizer step ---------------------------------------------------------

    def window(self, window: Window) -> None:
        """Take one optimizer step: gradients, clipping, verdict, step."""
        run, clock, hooks, gradients = self.run, self.run.clock, self.run.hooks, self.gradients
        units = self._count(window)
        self._begin_step()
        gradients.compute(window, units, sum(map(len, self._ids.values())))
        if self._end_draws:
            self._seed_hooks(1)
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(run.optimizer)
        if hooks.sft_gradients is not None:
            hooks.sft_gradients(run=run)
        norm = clip_gradients(gradients.parameters, self.clip_norm, sharded=self.precision.sharded)
        verdict = self._judge(norm)
        if verdict.action is Action.STEP:
            self._step(norm)
            if hooks.sft_step_end is not None:
                hooks.sft_step_end(run=run)
        else:
            self.precision.skip()
            self._heal(verdict)
        gradients.drop()
        clock.step += 1
        clock.window += 1

    def _step(self, norm: Tensor) -> None:
        """Let the optimizer take its step, and have it measured where that is due."""
        vitals = self.vitals
        if vitals is None or not vitals.is_due(self.run.clock):
            self.precision.step(self.run.optimizer)
            return
        vitals.before_step(norm)
        self.precision.step(self.run.optimizer)
        vitals.after_step()

    def _count(self, window: Window) -> dict[str, dict[str, float]]:
        """Sum the units of each split over micro-batches and all ranks; see who wants to stop."""
        units: dict[str, dict[str, float]] = {}
        for batch in window:
            own = units.setdefault(batch.split, {})
            for name, number in batch.units.items():
                own[name] = own.get(name, 0.0) + number
        clock = self.run.clock
        stop = float(self.signals.received or clock.step == self.stop_after)
        if self.feed.world > 1:
            stop = _sum_over_ranks(units, stop)
        if stop:
            self.save()
            raise Interrupted(self.signals.sentence(clock.step))
        self._ids = self.feed.ids(clock.step - clock.phase_start)
        self.ledger.begin_window(sum([own["item"] for own in units.values()]))
        return units

    def _begin_step(self) -> None:
        """Tell components that a step begins, and set the learning rate."""
        run = self.run
        if self.keep_snapshot is not None and _due(run.clock.step, self.log_every):
            self.keep_snapshot()
        self.gradients.key = order.mix(run.clock.step, start=self._noise)
        if self._step_draws:
            self._seed_hooks(0)
            run.hooks.sft_step_start(run=run)  # type: ignore[misc]
            self.gradients.follow_freezing()
        self._set_rates()

    def _seed_hooks(self, part: int) -> None:
        """Seed what hooks draw outside of micro-batches: equally on all ranks, by position alone."""
        seed_noise(self.run.device, order.mix(part, start=self.gradients.key))

    def _set_rates(self) -> None:
        run, clock = self.run, self.run.clock
        step, steps = clock.step - clock.phase_start, clock.phase_steps
        factor = run.schedule.factor(step, steps)
        groups = zip(run.optimizer.param_groups, run.parameter_groups, self._rates, strict=True)
        for group, of_recipe, rate in groups:
            group["lr"] = rate * factor * math.prod(of_recipe.factors.values())
        if self._momentum is not None:
            _set_momentum(run.optimizer, self._momentum(step, steps))

    # --- judging the step ------------------------------------------------------------------------

    def _judge(self, norm: Tensor) -> Verdict:
        """Ask for verdicts; the strictest of all components and ranks holds."""
        hook = self.run.hooks.sft_step_verdict
        self.ledger.see(norm)
        verdict = _GO
        if hook is not None:
            verdicts = hook(run=self.run, grad_norm=norm)
            verdict = max(verdicts, key=lambda v: v.action) if verdicts else _GO
            if self.feed.world > 1:
                verdict = _agree(verdict, self.run.accelerator)
        if verdict.action is not Action.STEP:
            self.ledger.overlook()  # a component has taken care of it
        elif norm.device.type == "cpu":
            self._require_finite()
        return verdict

    def _require_finite(self) -> None:
        """Stop the run if a gradient norm since the last look was not finite.

        Under fp16 an overflow lowers the loss scale; only if that does not help any more, it stops.
        """
        norm = self.ledger.norm()
        if math.isfinite(norm) or self.precision.may_recover():
            return
        self._record()
        raise DivergedError(
            f"the gradient is {norm}{self.precision.remark()} at step {self.run.clock.step} "
            f"({_some_of(self._ids)}): look at these examples, lower `optimizer.lr`, or raise "
            "`schedule.warmup`; the newest checkpoint is from before"
        )

    def _heal(self, verdict: Verdict) -> None:
        """Carry out a verdict other than "step"."""
        run = self.run
        if verdict.action is Action.STOP:
            self._record()
            raise DivergedError(f"stopped at step {run.clock.step}: {verdict.reason}")
        if verdict.action is Action.ROLL_BACK:
            if self.roll_back is None:
                raise RecipeError(
                    f"a component asked to roll back ({verdict.reason}) without declaring the "
                    "capability `rolls_back`"
                )
            self.roll_back()
        run.record(
            {
                "kind": "verdict",
                "step": run.clock.step,
                "action": verdict.action.name.lower().replace("_", " "),
                "reason": verdict.reason,
                **{_key_of(name): ids for name, ids in self._ids.items()},
            }
        )


_GO = Verdict(Action.STEP, "")
_IN_STEPS = (
    "sft_train_start",
    "sft_phase_start",
    "sft_epoch_start",
    "sft_step_start",
    "sft_batch",
    "sft_micro_step",
    "sft_loss_terms",
    "sft_gradients",
    "sft_step_verdict",
    "sft_step_end",
    "sft_epoch_end",
)
_IN_EVALUATIONS = ("sft_eval_views", "sft_eval_batch", "sft_metrics")
"""Hooks in which a component may ask for something by `run.control`."""


def _key_of(stream: str) -> str:
    """Return under which key a record holds the examples of a stream."""
    return "examples" if stream == TARGET else f"examples/{stream}"


def _some_of(ids: Mapping[str, list[int]]) -> str:
    """Name the first examples of a window, stream by stream."""
    parts = [
        f"examples {', '.join(map(str, each[:8]))} … of "
        + ("the training split" if name == TARGET else f"the stream `{name}`")
        for name, each in ids.items()
    ]
    return ", ".join(parts)


def _sum_over_ranks(units: dict[str, dict[str, float]], stop: float) -> float:
    """Add up the units of all ranks in place; return how many ranks want to stop."""
    keys = [(split, name) for split in sorted(units) for name in sorted(units[split])]
    own = [units[split][name] for split, name in keys]
    vector = torch.tensor([stop, *own], dtype=torch.float64)
    stop, *totals = ranks.sum_of_all(vector).tolist()
    for (split, name), total in zip(keys, totals, strict=True):
        units[split][name] = total
    return stop


def _fire(hook: Callable[..., Any] | None, run: Run) -> None:
    if hook is not None:
        hook(run=run)


def _due(step: int, every: int, origin: int = 0) -> bool:
    return every > 0 and (step - origin) % every == 0


def _agree(verdict: Verdict, accelerator: Accelerator) -> Verdict:
    """Return the strictest verdict of all ranks, with its reason."""
    action = torch.tensor([int(verdict.action)])
    strictest = Action(int(ranks.largest_of_all(action).item()))
    if strictest is Action.STEP:
        return verdict
    everyones = ranks.everyones(accelerator, verdict)
    return next(each for each in everyones if each.action is strictest)


def _set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif "momentum" in group:
            group["momentum"] = momentum
