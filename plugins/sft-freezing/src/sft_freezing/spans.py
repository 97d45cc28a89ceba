"""The part of a run that a schedule is spread over: all of it, or the phases that are named.

Positions inside are steps of those phases alone, so a schedule need not know what lies between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft_engine.flow import Phase


@dataclass(frozen=True)
class Span:
    """Some phases of a run, one after the other.

    Args:
        phases: Those that count, in the order of the run.
    """

    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def position(self, step: int) -> int | None:
        """Return how many steps of the span are done before a step of the run; None outside of it."""
        for before, phase in self._before():
            if phase.start <= step < phase.start + phase.steps:
                return before + step - phase.start
        return None

    def after_epochs(self, epochs: float) -> int:
        """Return how many steps so many epochs are; all of them if there are fewer epochs.

        An epoch that a phase has begun ends with the phase.
        """
        for before, phase in self._before():
            own = math.ceil(phase.steps / phase.steps_per_epoch)
            if epochs <= own:
                return before + min(round(epochs * phase.steps_per_epoch), phase.steps)
            epochs -= own
        return self.steps

    def after_share(self, share: float) -> int:
        """Return how many steps a share of the span is."""
        return round(share * self.steps)

    def _before(self) -> Iterator[tuple[int, Phase]]:
        done = 0
        for phase in self.phases:
            yield done, phase
            done += phase.steps


def span_of(phases: Iterable[Phase], names: Sequence[str]) -> Span:
    """Return the phases that are named, or all of them for no names."""
    return Span(tuple(phase for phase in phases if not names or phase.name in names))
