"""Signals that ask a run to stop: SIGTERM of a scheduler, Ctrl-C of a person.

The handler only remembers the signal. What happens then depends on where the run is:

- before training (libraries, data, model): it ends at the next stage with exit code 75; nothing was
  written, so the same command is run again;
- in training: before the next window all ranks agree, a checkpoint is saved, exit code 75. An evaluation
  of the validation split, or a checkpoint, that is under way is finished first: components may have
  seen part of it, and what they decide must not depend on the signal;
- in the final evaluation: it is left at the next batch, exit code 75 (with several processes it is
  finished); `resume` evaluates again, from the checkpoint of the last step. Only where checkpoints
  are off (`checkpoint.every_epochs = 0`) there is none to come back to, and the run is finished;
- while results are written: the run is finished, exit code 0.

So a scheduler that gives a grace period sees 75 within the time of one window or one evaluation of the
validation split; if that is too long and it kills, the newest checkpoint is what the run goes on from.
A second signal ends the process at once (128 + its number), with the same effect as a kill. With
several processes a scheduler signals all of them, and torchrun does so once more: what follows
within `ECHO` seconds is the same signal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from sft_engine import launch
from sft_engine.errors import Interrupted

ECHO = 10.0
"""Seconds in which the launcher of several processes may repeat a signal."""


class Signals:
    """Remember SIGTERM and SIGINT while the context is open."""

    def __init__(self) -> None:
        self.received = 0
        self._when = 0.0
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
        now = time.monotonic()
        echo = launch.processes() > 1 and now - self._when < ECHO
        if self.received and not echo:
            os._exit(128 + number)
        self.received, self._when = self.received or number, now

    def sentence(self, step: int) -> str:
        """Say what happened, for `Interrupted`."""
        name = signal.Signals(self.received).name if self.received else "another process"
        return f"interrupted by {name} before step {step}; a checkpoint is written"

    def check(self) -> None:
        """Raise Interrupted where no checkpoint is possible yet (before training)."""
        if self.received:
            name = signal.Signals(self.received).name
            raise Interrupted(
                f"interrupted by {name} before training began: nothing was written, run the same "
                "command again"
            )

    def after_training(self) -> str:
        """Say that only the final evaluation is missing, for `Interrupted`."""
        name = signal.Signals(self.received).name if self.received else "another process"
        return f"interrupted by {name} before the final evaluation; a checkpoint is written"
