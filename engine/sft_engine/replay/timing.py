"""Times the parts of a micro-batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from sft_engine.replay.decision import Figures


@dataclass
class Stopwatch:
    """Times the parts of a micro-batch, if it is on.

    Args:
        device: Waited for.
        on: Whether it is worth waiting.
        computed: Examples for which the frozen part ran.
    """

    device: torch.device
    on: bool = False
    computed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._last = self._now()

    def _now(self) -> float:
        if self.on and self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a part."""
        if self.on:
            now = self._now()
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
            self._last = now

    def figures(self, examples: int) -> Figures:
        """Return seconds an example: of those computed, or of all of the batch."""
        numbers = {
            "frozen": self.computed,
            "keep": self.computed,
            "rest": examples,
            "fetch": examples,
        }
        return Figures(**{name: self.seconds.get(name, 0.0) / n for name, n in numbers.items()})


def least(figures: list[Figures]) -> Figures:
    """Return the shortest time of each part: the others were disturbed."""
    parts = ("frozen", "rest", "fetch", "keep")
    return Figures(**{name: min(getattr(each, name) for each in figures) for name in parts})
