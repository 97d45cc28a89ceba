"""The training batches of a phase: a window holds those of every stream that the phase trains on.

Where each stream is follows from the windows done in the phase and from the recipe alone, so a
checkpoint keeps nothing of it. A stream that ends before the phase does begins anew, in another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_engine.feed import Feed, prefetched
from sft_engine.flow import TARGET, Phase

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.feed import Window


class _Current(NamedTuple):
    """A stream of the current phase."""

    name: str
    feed: Feed
    passes_before: int
    windows: int  # of one pass


@dataclass
class Streams:
    """All feeds of one rank, and the phase that they feed now.

    Args:
        feeds: By the name of the stream.
        phases: In turn.
        phase: Index of the phase that is fed.
    """

    feeds: Mapping[str, Feed]
    phases: tuple[Phase, ...]
    phase: int = 0
    _current: list[_Current] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        first = next(iter(self.feeds.values()))
        self.rank, self.world, self.workers = first.rank, first.world, first.workers
        self._micro_batch_size = max(feed.micro_batch_size for feed in self.feeds.values())
        self.enter(self.phase)

    def enter(self, phase: int) -> None:
        """Feed the phase with this index."""
        self.phase = phase
        names = self.phases[phase].streams
        self._current = [
            _Current(n, self.feeds[n], self._passes_before(n), self.feeds[n].windows_per_epoch)
            for n in names
        ]

    def _passes_before(self, name: str) -> int:
        """Count the passes over a stream, begun ones too, that earlier phases make."""
        windows = self.feeds[name].windows_per_epoch
        earlier = (phase for phase in self.phases[: self.phase] if name in phase.streams)
        return sum(-(-phase.steps // windows) for phase in earlier)

    # --- what all feeds share --------------------------------------------------------------------

    @property
    def micro_batch_size(self) -> int:
        """Most examples of one micro-batch of one rank; setting it makes no feed's larger."""
        return self._micro_batch_size  # asked in every step

    @micro_batch_size.setter
    def micro_batch_size(self, size: int) -> None:
        for feed in self.feeds.values():
            feed.micro_batch_size = min(feed.micro_batch_size, size)
        self._micro_batch_size = max(feed.micro_batch_size for feed in self.feeds.values())

    # --- windows ---------------------------------------------------------------------------------

    def ids(self, index: int) -> dict[str, list[int]]:
        """Return the example ids, by stream, of the window with this index in the phase."""
        ids = {}
        for name, feed, before, windows in self._current:
            passes, at = divmod(index, windows)
            ids[name] = feed.windows(before + passes)[at].tolist()
        return ids

    def window(self, index: int) -> Window:
        """Fetch the window with this index in the phase: this rank's micro-batches, on the host."""
        window: Window = []
        for _, feed, before, windows in self._current:
            passes, at = divmod(index, windows)
            window += feed.window(before + passes, at)
        return window

    def epoch(self, start: int) -> Iterator[Window]:
        """Yield the windows of the phase from the one with index `start` to the end of its epoch."""
        phase = self.phases[self.phase]
        end = (start // phase.steps_per_epoch + 1) * phase.steps_per_epoch
        indices = range(start, min(end, phase.steps))
        if self.workers == 0:
            return map(self.window, indices)
        self.ids(start)  # planned here once, not in every worker
        return prefetched(self.window, indices, self.workers)


def plan_phases(plan: Plan, windows: Mapping[str, int]) -> tuple[Phase, ...]:
    """Return the phases of a recipe, or the one that a recipe without phases has.

    Args:
        plan: The checked recipe.
        windows: Windows of one pass over each stream, by its name.
    """
    if not plan.phases:
        per_epoch = windows[TARGET]
        steps = plan.train.steps or _steps(plan.train.epochs, per_epoch)
        return (Phase("train", {TARGET: 1.0}, steps, per_epoch),)
    phases: list[Phase] = []
    start = first_epoch = 0
    for settings in plan.phases:
        leading = TARGET if TARGET in settings.streams else next(iter(settings.streams))
        per_epoch = windows[leading]
        own: tuple[Any, Any] = (settings.steps, settings.epochs)
        given, epochs = own if any(own) else (plan.train.steps, plan.train.epochs)
        steps = given or _steps(epochs, per_epoch)
        phases.append(
            Phase(
                name=settings.name,
                streams=settings.streams,
                steps=steps,
                steps_per_epoch=per_epoch,
                lr=settings.lr,
                start=start,
                first_epoch=first_epoch,
            )
        )
        start, first_epoch = start + steps, first_epoch + math.ceil(steps / per_epoch)
    return tuple(phases)


def _steps(epochs: float, per_epoch: int) -> int:
    return max(1, round(epochs * per_epoch))
