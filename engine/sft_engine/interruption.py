"""Signals that ask a run to stop: SIGTERM of a scheduler, Ctrl-C of a person.

The handler only remembers the signal; the loop looks at the next window, agrees with the other ranks,
saves a checkpoint and ends with exit code 75. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from sft_engine.errors import Interrupted


class Signals:
    """Remember SIGTERM and SIGINT while the context is open."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only; a notebook's worker thread keeps its own.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number

    def sentence(self, step: int) -> str:
        """Say what happened, for `Interrupted`."""
        name = signal.Signals(self.received).name if self.received else "another process"
        return f"interrupted by {name} before step {step}; a checkpoint is written"

    def check(self) -> None:
        """Raise Interrupted where no checkpoint is possible yet (before training)."""
        if self.received:
            name = signal.Signals(self.received).name
            raise Interrupted(f"interrupted by {name} before training began; nothing was lost")
