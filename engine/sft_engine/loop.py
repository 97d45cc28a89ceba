"""The training loop: epochs, windows, micro-batches; it knows hooks, never methods.

    train_start  phase_start
      epoch_start
        step_start
          [batch  micro_step( forward  loss_terms  backward )] for each micro-batch
          gradients  (clip)  step_verdict  (optimizer step)  step_end
        ... evaluation and checkpoint where due
      epoch_end
    phase_end  train_end

A window's loss is the sum over its items (or tokens) on all ranks, divided by their number; the
division happens before `backward`, because unnormalised sums overflow fp16.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import order
from sft_engine.devices import Precision, is_out_of_memory, seed_noise
from sft_engine.errors import DataError, DivergedError, Interrupted, RecipeError
from sft_engine.flow import Action, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.feed import Feed, Window
    from sft_engine.flow import Batch, Run
    from sft_engine.interruption import Signals


@dataclass
class Loop:
    """One training loop over a Run.

    Args:
        run: What is trained.
        feed: This rank's batches.
        precision: Autocast and, for fp16, the gradient scaler.
        signals: Says whether the run was asked to stop.
        wrap: Wraps the model anew after `requires_grad` has changed.
        evaluate: Evaluates the validation split.
        save: Saves a checkpoint.
        base_lr: Learning rate of each parameter group before the schedule.
        evaluate_every: Steps between evaluations; 0 for none.
        save_every: Steps between checkpoints; 0 for none.
        log_every: Steps between records.
        clip_norm: Largest gradient norm; 0 for no clipping.
        keep_snapshot: Called before a step at `log_every` if a component may roll back.
        roll_back: Puts the weights and the optimizer back to the latest snapshot.
        stop_after: Interrupt as if by a signal before the step with this index; -1 for never.
    """

    run: Run
    feed: Feed
    precision: Precision
    signals: Signals
    wrap: Callable[[Run], None]
    evaluate: Callable[[], None]
    save: Callable[[], None]
    base_lr: list[float]
    evaluate_every: int
    save_every: int
    log_every: int
    clip_norm: float
    keep_snapshot: Callable[[], None] | None = None
    roll_back: Callable[[], None] | None = None
    stop_after: int = -1
    micro_batch_size: int = field(init=False)
    _units: dict[str, float] = field(default_factory=dict)
    _window: Window = field(default_factory=list)
    _parameters: list[torch.nn.Parameter] = field(default_factory=list)
    _trainable: list[bool] = field(default_factory=list)
    _terms: list[tuple[str, Tensor]] | None = field(default_factory=list)
    _norms: list[Tensor] = field(default_factory=list)
    _windows: int = 0
    _examples: int = 0
    _items: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        run = self.run
        run.forward, run.forward_backward = self.forward, self.forward_backward
        run.replay_window = self.replay_window
        self.micro_batch_size = self.feed.micro_batch_size
        # Only these hooks may change what is frozen: without them nobody has to look.
        self._may_freeze = any(
            (run.hooks.sft_phase_start, run.hooks.sft_epoch_start, run.hooks.sft_step_start)
        )

    # --- epochs ----------------------------------------------------------------------------------

    def train(self) -> str:
        """Train from the clock's position to the end; return why training ended."""
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        run.model.train()
        self._follow_freezing(first=True)
        _fire(hooks.sft_train_start, run)
        _fire(hooks.sft_phase_start, run)
        while clock.step < clock.total_steps and not run.control.stop:
            self._epoch()
        self._finite()
        _fire(hooks.sft_phase_end, run)
        _fire(hooks.sft_train_end, run)
        return run.control.stop or "all steps done"

    def _epoch(self) -> None:
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        _fire(hooks.sft_epoch_start, run)
        for window in self.feed.epoch(clock.epoch, clock.window):
            self.window(window)
            if clock.window == clock.steps_per_epoch:
                _fire(hooks.sft_epoch_end, run)
                clock.epoch, clock.window = clock.epoch + 1, 0
            self._between_steps()
            if run.control.stop or clock.step >= clock.total_steps:
                return

    def _between_steps(self) -> None:
        """Do what is due after a step: a record, an evaluation, a checkpoint."""
        run, step = self.run, self.run.clock.step
        last = step >= run.clock.total_steps
        evaluate = last or run.control.evaluate or _due(step, self.evaluate_every)
        save = (last and self.save_every > 0) or run.control.save or _due(step, self.save_every)
        if evaluate or save or _due(step, self.log_every):
            self._record()
        if evaluate:
            self.evaluate()
            run.model.train()
        if save or run.control.save:
            self.save()
        run.control.evaluate = run.control.save = False
        if evaluate or save:
            self._since = time.perf_counter()

    # --- one window = one optimizer step ---------------------------------------------------------

    def window(self, window: Window) -> None:
        """Take one optimizer step: accumulate, clip, judge, step."""
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        self._prepare(window)
        self._accumulate()
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(run.optimizer)
        if hooks.sft_gradients is not None:
            hooks.sft_gradients(run=run)
        norm = self._clip()
        verdict = self._judge(norm)
        if verdict.action is Action.STEP:
            self.precision.step(run.optimizer)
            if hooks.sft_step_end is not None:
                hooks.sft_step_end(run=run)
        else:
            self._heal(verdict)
        for parameter in self._parameters:
            parameter.grad = None
        clock.step += 1
        clock.window += 1

    def _prepare(self, window: Window) -> None:
        """Count the window, tell components that it begins, set the learning rate."""
        run = self.run
        self._window = window
        self._count(window)
        if self.keep_snapshot is not None and _due(run.clock.step, self.log_every):
            self.keep_snapshot()
        if run.hooks.sft_step_start is not None:
            run.hooks.sft_step_start(run=run)
        if self._may_freeze:
            self._follow_freezing()
        self._set_rates()

    def _count(self, window: Window) -> None:
        """Sum the units of the window over its micro-batches and all ranks; see who wants to stop."""
        units: dict[str, float] = {}
        for batch in window:
            for name, number in batch.units.items():
                units[name] = units.get(name, 0.0) + number
        stop = float(self.signals.received or self.run.clock.step == self.stop_after)
        if self.feed.world > 1:
            names = sorted(units)
            vector = torch.tensor([stop, *(units[name] for name in names)], dtype=torch.float64)
            stop, *totals = _all_reduce(vector, self.run.device).tolist()
            units = dict(zip(names, totals, strict=True))
        if stop:
            self.save()
            raise Interrupted(self.signals.sentence(self.run.clock.step))
        self._units = units
        self._examples = len(self.feed.windows(self.run.clock.epoch)[self.run.clock.window])
        self._items += units["item"]
        self._windows += 1

    def _set_rates(self) -> None:
        run, clock = self.run, self.run.clock
        factor = run.schedule.factor(clock.step, clock.total_steps)
        for group, rate in zip(run.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = rate * factor
        momentum = getattr(run.schedule, "momentum", None)
        if momentum is not None:
            _set_momentum(run.optimizer, momentum(clock.step, clock.total_steps))

    def _accumulate(self) -> None:
        """Run every micro-batch; where memory does not suffice, halve them and begin again."""
        while True:
            try:
                return self._micro_steps()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).partition("\n")[0]
            # Outside the except clause, so that the traceback no longer holds the activations.
            self._halve(message)

    def _micro_steps(self) -> None:
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        last = len(self._window) - 1
        for index, batch in enumerate(self._window):
            seed_noise(run.device, order.mix(run.seeds.noise, clock.step, index, self.feed.rank))
            if run.device.type != "cpu":
                batch.to(run.device)
            if hooks.sft_batch is not None:
                hooks.sft_batch(run=run, batch=batch)
            with self._synchronized(last=index == last):
                if hooks.sft_micro_step is None:
                    self.forward_backward(batch)
                else:
                    hooks.sft_micro_step(run=run, batch=batch)

    def _synchronized(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        if self.feed.world == 1 or last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any]
        context = self.run.accelerator.no_sync(self.run.wrapped)
        return context

    def _halve(self, message: str) -> None:
        """Refetch the window in micro-batches of half the size."""
        run = self.run
        if self.feed.world > 1 or self.micro_batch_size == 1:
            raise DataError(
                f"memory does not suffice for a micro-batch of {self.micro_batch_size} "
                f"({message}): set a smaller `train.micro_batch_size`, or "
                "`train.gradient_checkpointing = true`"
            )
        self.micro_batch_size = self.feed.micro_batch_size = -(-self.micro_batch_size // 2)
        for parameter in self._parameters:
            parameter.grad = None
        del self._terms[-len(self._window) :]  # type: ignore[union-attr]
        self._window = self.feed.window(run.clock.epoch, run.clock.window)
        run.record(
            {
                "kind": "notice",
                "step": run.clock.step,
                "message": f"out of memory: micro-batches now have {self.micro_batch_size} "
                "examples; the window, and so the result, stays as it is",
            }
        )

    # --- the inner step --------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Any:
        """Run the wrapped model on a micro-batch, in the run's precision."""
        with self.precision.autocast():
            return self.run.backbone.forward(self.run.wrapped, batch.inputs)

    def forward_backward(self, batch: Batch) -> None:
        """Run forward, loss and backward of one micro-batch, adding to the gradients."""
        run, hooks = self.run, self.run.hooks
        with self.precision.autocast():
            outputs = run.backbone.forward(run.wrapped, batch.inputs)
            terms = [run.task.loss(outputs, batch)]
            if hooks.sft_loss_terms is not None:
                for more in hooks.sft_loss_terms(run=run, batch=batch, outputs=outputs):
                    terms.extend(more)
        total: Tensor | None = None
        for term in terms:
            value = term.value * (term.weight * self._share(term.per, batch))
            if self._terms is not None:
                self._terms.append((term.name, value.detach()))
            total = value if total is None else total + value
        assert total is not None
        # DDP and FSDP average gradients over ranks; the loss is already divided by the whole window.
        self.precision.backward(total * self.feed.world if self.feed.world > 1 else total)

    def _share(self, per: str, batch: Batch) -> float:
        """Return the factor that makes a term's sum its part of the window's mean."""
        if not batch.real:
            return 0.0
        if per == "step":
            return len(batch.ids) / self._examples
        if per not in self._units:
            known = ", ".join(sorted(self._units))
            raise RecipeError(
                f"a loss term is counted per {per!r}; this task counts: {known}, step"
            )
        count = self._units[per]
        return 1.0 / count if count else 0.0

    def replay_window(self) -> None:
        """Compute the gradients of the current window again, from zero; logs nothing."""
        for parameter in self._parameters:
            parameter.grad = None
        terms, self._terms = self._terms, None
        try:
            self._micro_steps()
        finally:
            self._terms = terms
        if self.precision.scaler is not None:
            self.precision.unscale_again(self._parameters)

    # --- judging the step ------------------------------------------------------------------------

    def _clip(self) -> Tensor:
        """Clip the gradient to `clip_norm` and return the norm that it had.

        On a CPU the multiplication is left out where it would be by one: the same bits as
        `torch.nn.utils.clip_grad_norm_` for less time.
        """
        grads = [p.grad for p in self._parameters if p.grad is not None]
        if not grads:
            return torch.zeros((), device=self.run.device)
        if self.precision.sharded:
            return self._clip_sharded()
        norms = torch._foreach_norm(grads)  # noqa: SLF001 (as torch's own clipping)
        norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        if not self.clip_norm:
            return norm
        if norm.device.type != "cpu":
            torch._foreach_mul_(grads, torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0))
        elif (factor := self.clip_norm / (norm + 1e-6)) < 1.0:
            torch._foreach_mul_(grads, factor)
        return norm

    def _clip_sharded(self) -> Tensor:
        limit = self.clip_norm or math.inf
        sharded: Any = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        norm: Tensor = sharded.full_tensor() if hasattr(sharded, "full_tensor") else sharded
        return norm

    def _judge(self, norm: Tensor) -> Verdict:
        """Ask for verdicts; the strictest of all components and ranks holds."""
        hook = self.run.hooks.sft_step_verdict
        self._norms.append(norm.detach())
        verdict = _GO
        if hook is not None:
            verdicts = hook(run=self.run, grad_norm=norm)
            verdict = max(verdicts, key=lambda v: v.action, default=_GO)
            if self.feed.world > 1:
                verdict = _agree(verdict, self.run.device)
        if verdict.action is Action.STEP and norm.device.type == "cpu":
            self._finite()
        elif verdict.action is not Action.STEP:
            self._norms.pop()  # a component has taken care of it
        return verdict

    def _finite(self) -> None:
        """Stop the run if a gradient norm since the last look was not finite."""
        if not self._norms or self.precision.scaler is not None:
            self._norms = self._norms[-1:]
            return
        norm = self._norms[0] if len(self._norms) == 1 else torch.stack(self._norms).sum()
        self._norms = self._norms[-1:]
        if math.isfinite(norm.item()):
            return
        self._write_record()
        clock = self.run.clock
        ids = [i for batch in self._window if batch.real for i in batch.ids][:8]
        raise DivergedError(
            f"the gradient is {norm.item()} at step {clock.step} (examples "
            f"{', '.join(map(str, ids))} … of the training split): look at these examples, lower "
            "`optimizer.lr`, or raise `schedule.warmup`; the newest checkpoint is from before"
        )

    def _heal(self, verdict: Verdict) -> None:
        """Carry out a verdict other than "step"."""
        run = self.run
        if verdict.action is Action.STOP:
            self._write_record()
            raise DivergedError(f"stopped at step {run.clock.step}: {verdict.reason}")
        if verdict.action is Action.ROLL_BACK:
            if self.roll_back is None:
                raise RecipeError(
                    f"a component asked to roll back ({verdict.reason}) without declaring the "
                    "capability `rolls_back`"
                )
            self.roll_back()
        ids = [i for batch in self._window if batch.real for i in batch.ids]
        action = verdict.action.name.lower().replace("_", " ")
        run.record(
            {
                "kind": "verdict",
                "step": run.clock.step,
                "action": action,
                "reason": verdict.reason,
                "examples": ids,
            }
        )

    # --- records and freezing --------------------------------------------------------------------

    def _record(self) -> None:
        self._finite()
        self._write_record()

    def _write_record(self) -> None:
        """Write the mean of every loss term since the last record: the only host sync of the loop."""
        run, clock = self.run, self.run.clock
        if not self._terms:
            return
        names = sorted({name for name, _ in self._terms})
        sums = torch.stack(
            [torch.stack([v.double() for n, v in self._terms if n == name]).sum() for name in names]
        )
        if self.feed.world > 1:
            sums = _all_reduce(sums, run.device)
        means = [value / self._windows for value in sums.tolist()]
        elapsed = time.perf_counter() - self._since
        record: dict[str, Any] = {
            "kind": "train",
            "step": clock.step,
            "epoch": clock.step / clock.steps_per_epoch,
            "loss": math.fsum(means) if all(map(math.isfinite, means)) else sum(means),
            **{f"loss/{name}": mean for name, mean in zip(names, means, strict=True)},
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "grad_norm": self._norms[-1].item() if self._norms else 0.0,
            "examples_per_second": self._items / elapsed if elapsed else 0.0,
        }
        self._terms, self._windows, self._items = [], 0, 0.0
        run.record(record)
        self._since = time.perf_counter()

    def _follow_freezing(self, *, first: bool = False) -> None:
        """Notice changes of `requires_grad`: drop stale gradients, wrap the model anew.

        DDP registers its hooks once: a parameter that thaws after the wrap would not be averaged, and
        the ranks would drift apart in silence.
        """
        everything = list(self.run.model.parameters())
        trainable = [p.requires_grad for p in everything]
        if trainable == self._trainable:
            return
        self._trainable = trainable
        for parameter in everything:
            if not parameter.requires_grad:
                parameter.grad = None
        self._parameters = [p for p in everything if p.requires_grad]
        if not self._parameters:
            raise RecipeError(
                f"nothing is left to train at step {self.run.clock.step}: every layer group is "
                "frozen; thaw at least the head in `[freezing]`"
            )
        if not first:
            self.wrap(self.run)


_GO = Verdict(Action.STEP, "")


def _fire(hook: Callable[..., Any] | None, run: Run) -> None:
    if hook is not None:
        hook(run=run)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _all_reduce(vector: Tensor, device: torch.device) -> Tensor:
    """Sum a vector over all ranks."""
    on_device = vector.to(device) if device.type != "mps" else vector.float().to(device)
    torch.distributed.all_reduce(on_device)
    return on_device


def _agree(verdict: Verdict, device: torch.device) -> Verdict:
    """Return the strictest verdict of all ranks."""
    action = torch.tensor(int(verdict.action), device=device)
    torch.distributed.all_reduce(action, op=torch.distributed.ReduceOp.MAX)
    strictest = Action(int(action.item()))
    return (
        verdict if verdict.action is strictest else Verdict(strictest, "another rank asked for it")
    )


def _set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif "momentum" in group:
            group["momentum"] = momentum
