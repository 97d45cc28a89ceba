"""From a window to its gradient: micro-batches, the exact loss, and what to do if memory is short.

A window's loss is the sum over its items (or tokens) on all ranks, divided by their number, for each
of its streams, times the stream's weight; the division happens before `backward`, because unnormalised
sums overflow fp16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sft_engine import order
from sft_engine.devices import Precision, is_out_of_memory, release_memory, seed_noise
from sft_engine.errors import OutOfMemoryError, RecipeError
from sft_engine.flow import TARGET, split_of
from sft_engine.modes import set_training_modes

if TYPE_CHECKING:
    import torch

    from sft_engine.feed import Window
    from sft_engine.flow import Batch, Run
    from sft_engine.ledger import Ledger
    from sft_engine.streams import Streams

    Units = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class _Part:
    """What a stream is in the objective: its split, its weight, what its terms are called."""

    split: str
    weight: float
    prefix: str


@dataclass
class Gradients:
    """Computes the gradients of one window after the other.

    Args:
        run: What is trained; gets `forward`, `forward_backward` and `replay_window`.
        feed: This rank's batches.
        precision: Autocast and, for fp16, the gradient scaler.
        wrap: Wraps the model anew after `requires_grad` has changed.
        ledger: Notes the loss terms.
        parameters: Those that train now.
        key: Hash of the noise seed and the step, from which every draw of the window is seeded.
    """

    run: Run
    feed: Streams
    precision: Precision
    wrap: Callable[..., None]
    ledger: Ledger
    parameters: list[torch.nn.Parameter] = field(default_factory=list)
    key: int = 0
    _everything: list[torch.nn.Parameter] = field(default_factory=list)
    _window: Window = field(default_factory=list)
    _units: Units = field(default_factory=dict)
    _parts: dict[str, _Part] = field(default_factory=dict)
    _first: _Part = _Part("train", 1.0, "")
    _examples: int = 0
    _mark: int = 0
    _fresh: bool = True

    def __post_init__(self) -> None:
        run = self.run
        run.forward, run.forward_backward = self.forward, self.forward_backward
        run.replay_window = self.replay_window

    def enter_phase(self) -> None:
        """Take over the objective of the run's current phase."""
        weights = self.run.phase.streams
        parts = [
            _Part(split_of(name), weight, "" if name == TARGET else f"{name}/")
            for name, weight in weights.items()
        ]
        self._parts = {part.split: part for part in parts}
        # A batch that a component has made up may be of no split at all.
        self._first = next((part for part in parts if not part.prefix), parts[0])

    # --- a window --------------------------------------------------------------------------------

    def compute(self, window: Window, units: Units, examples: int) -> None:
        """Add up the gradients of a window's micro-batches.

        Args:
            window: This rank's micro-batches.
            units: Number of each unit in the whole window, over all ranks, by split.
            examples: Number of examples in the whole window.
        """
        self._units, self._examples = units, examples
        if max([len(batch.ids) for batch in window]) > self.feed.micro_batch_size:
            # Memory did not suffice, and the background processes do not know: fetch it again.
            window = self._refetched()
        self._window = window
        self._accumulate()
        if self._fresh and self.feed.world > 1:
            self._find_unused()

    def drop(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def replay_window(self) -> None:
        """Compute the gradients of the current window again, from zero; logs nothing."""
        self.drop()
        with self.ledger.paused():
            self._micro_steps()
        # Draws of micro-batches differ between ranks; what hooks draw next must not.
        seed_noise(self.run.device, order.mix(2, start=self.key))
        if self.precision.scaler is not None:
            self.precision.unscale_again(self.parameters)

    def _refetched(self) -> Window:
        clock = self.run.clock
        return self.feed.window(clock.step - clock.phase_start)

    def _accumulate(self) -> None:
        """Run every micro-batch; where memory does not suffice, halve them and begin again."""
        self._mark = self.ledger.mark()
        while True:
            try:
                return self._micro_steps()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).partition("\n")[0]
            # Outside the except clause, so that the traceback no longer holds the activations.
            self._begin_again()
            release_memory(self.run.device)
            self._halve(message)

    def _begin_again(self) -> None:
        self.drop()
        self.ledger.forget(self._mark)

    def _halve(self, message: str) -> None:
        """Refetch the window in micro-batches of half the size."""
        run, size = self.run, self.feed.micro_batch_size
        if self.feed.world > 1 or size == 1:
            less = "" if size == 1 else "a smaller `train.micro_batch_size`, "
            raise OutOfMemoryError(
                f"the memory does not suffice for micro-batches of {size} at step {run.clock.step} "
                f"({message}); set {less}shorter inputs, or `train.gradient_checkpointing = true`"
            )
        self.feed.micro_batch_size = -(-size // 2)
        self._window = self._refetched()
        self._notice(
            f"out of memory: micro-batches now have {self.feed.micro_batch_size} examples; the window, "
            "and so the result, stays as it is"
        )

    def _micro_steps(self) -> None:
        run, hooks, device = self.run, self.run.hooks, self.run.device
        last = len(self._window) - 1
        for index, batch in enumerate(self._window):
            seed_noise(device, order.mix(index, self.feed.rank, start=self.key))
            if device.type != "cpu":
                batch.to(device)
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

    # --- the inner step --------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Any:
        """Run the wrapped model on a micro-batch, in the run's precision."""
        if self.run.replay is not None:
            self.run.replay.make_real(batch)
        with self.precision.autocast():
            return self.run.backbone.forward(self.run.wrapped, batch.inputs)

    def forward_backward(self, batch: Batch) -> None:
        """Run forward, loss and backward of one micro-batch, adding to the gradients."""
        replay = self.run.replay
        if replay is None or replay.asleep:
            self._forward_backward(batch)
        else:
            # The backward pass too: checkpointed activations are computed anew in it.
            with replay.serving(batch):
                self._forward_backward(batch)

    def _forward_backward(self, batch: Batch) -> None:
        run, hooks = self.run, self.run.hooks
        with self.precision.autocast():
            outputs = run.backbone.forward(run.wrapped, batch.inputs)
            terms = [run.task.loss(outputs, batch)]
            if hooks.sft_loss_terms is not None:
                for more in hooks.sft_loss_terms(run=run, batch=batch, outputs=outputs):
                    terms.extend(more)
        parts = []
        prefix = self._parts.get(batch.split, self._first).prefix
        for term in terms:
            share = term.weight * self._share(term.per, batch)
            # What counts once a window is of no stream in particular.
            name = prefix + term.name if prefix and term.per != "step" else term.name
            self.ledger.add(name, term.value, share)
            # DDP and FSDP average gradients over ranks; the share is of the whole window already.
            parts.append((term.value, share * self.feed.world))
        self.precision.backward(parts)

    def _share(self, per: str, batch: Batch) -> float:
        """Return the factor that makes a term's sum its part of the window's objective."""
        if not batch.real:
            return 0.0
        if per == "step":
            return len(batch.ids) / self._examples
        part = self._parts.get(batch.split, self._first)
        units = self._units[part.split]
        if per not in units:
            known = ", ".join(sorted(units))
            raise RecipeError(
                f"a loss term is counted per {per!r}; this task counts: {known}, step"
            )
        count = units[per]
        return part.weight / count if count else 0.0

    # --- what trains -----------------------------------------------------------------------------

    def follow_freezing(self, *, first: bool = False) -> None:
        """Notice changes of `requires_grad`: training modes, stale gradients, the wrapper, replay.

        DDP registers its hooks once: a parameter that thaws after the wrap would not be averaged, and
        the ranks would drift apart in silence.

        Raises:
            RecipeError: nothing is left to train.
        """
        everything = self._everything = self._everything or list(self.run.model.parameters())
        changed = [p.requires_grad for p in everything] != self.run.trainable
        if not (changed or first):
            return
        for parameter in everything:
            if not parameter.requires_grad:
                parameter.grad = None
        self.parameters = [p for p in everything if p.requires_grad]
        if not self.parameters:
            raise RecipeError(
                f"nothing is left to train at step {self.run.clock.step}: every layer group is "
                "frozen; thaw at least the head in `[freezing]`"
            )
        set_training_modes(self.run.model)
        if self.run.replay is not None:
            # At the border of phases too: other streams, another number of epochs.
            self.run.replay.follow()
        if changed:
            self.wrap(self.run)
            self._fresh = True

    def _find_unused(self) -> None:
        """Look for parameters without gradient in the first window after a wrap; wrap again if any.

        DDP waits for the gradient of every parameter, and would leave the others unsynchronized.
        """
        self._fresh = False
        run = self.run
        idle = [n for n, p in run.model.named_parameters() if p.requires_grad and p.grad is None]
        if not idle or self.precision.sharded:
            return
        names = ", ".join(idle[:3]) + (" …" if idle[3:] else "")
        self._notice(f"no gradient reaches {names}: looking for unused parameters in every step")
        self.wrap(run, unused=True)
        self._begin_again()
        self._window = self._refetched()
        self._accumulate()

    def _notice(self, message: str) -> None:
        self.run.record({"kind": "notice", "step": self.run.clock.step, "message": message})
