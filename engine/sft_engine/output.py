"""A text stream that a run outlives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import rich.console

PLAIN_WIDTH = 240
"""Where nobody looks through a window of some width, tables may be wide."""


class Output:
    """A text stream that a run outlives: a closed pipe or terminal must not end hours of training.

    Args:
        target: The stream; characters that its encoding lacks are written as escapes.
    """

    def __init__(self, target: IO[str]) -> None:
        self._target = target
        self._lost = False

    @property
    def encoding(self) -> str:
        """Of the target."""
        return getattr(self._target, "encoding", None) or "utf-8"

    @property
    def is_interactive(self) -> bool:
        """Whether a line can be drawn over: a terminal that knows how."""
        return self.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")

    def isatty(self) -> bool:
        """Whether the target is a terminal."""
        return not getattr(self._target, "closed", False) and self._target.isatty()

    def fileno(self) -> int:
        """Return the target's file descriptor."""
        return self._target.fileno()

    def write(self, text: str) -> int:
        """Write, as long as somebody reads."""
        safe = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._attempt(lambda: self._target.write(safe))
        return len(text)

    def flush(self) -> None:
        """Flush, as long as somebody reads."""
        self._attempt(self._target.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            action()
        except (OSError, ValueError):  # broken pipe, terminal gone, stream closed
            self._lost = True
            self._drop_rest()

    def _drop_rest(self) -> None:
        """Let what is still buffered go nowhere, or the interpreter would complain when it exits."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._target.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass

    def rich(self) -> rich.console.Console:
        """Return a rich console on this output; texts are shown as they are, brackets included."""
        import rich.console

        return rich.console.Console(
            file=cast("IO[str]", self),
            width=None if self.isatty() else PLAIN_WIDTH,
            markup=False,
            emoji=False,
            highlight=False,
        )
