"""What a person sees of a run: a live line on a terminal, plain lines elsewhere, tables at the end.

Plain lines are `KIND key=value …`, one for each evaluation and about twenty for each epoch. Nothing
but rank 0 shows anything. rich is imported when it is first needed.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

from sft_engine.console_lines import (
    clock_time,
    evaluation_line,
    first_line,
    number,
    plain_value,
    second_line,
    time_left,
    train_line,
    written,
)
from sft_engine.output import Output

if TYPE_CHECKING:
    from types import TracebackType

    import rich.console
    from rich.console import ConsoleOptions, RenderResult
    from rich.live import Live

    from sft_engine.flow import Run
    from sft_engine.training import Outcome

LINES_AN_EPOCH = 20
LINES_A_RUN = 400
WIDEST_BAR, NARROWEST_BAR = 30, 8


class Console:
    """Shows a run; a `Progress` of `training`, with the result on top.

    Args:
        quiet: Show warnings only, on `errors`.
        as_json: Print the result as one JSON object on `stream` and everything else on `errors`.
        stream: Where to show the run; standard output if None.
        errors: Standard error if None.
        clock: Seconds; tells how much time is left.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        as_json: bool = False,
        stream: IO[str] | None = None,
        errors: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._result = stream or sys.stdout
        self._errors = Output(errors or sys.stderr)
        self._out = self._errors if as_json else Output(self._result)
        self._clock = clock
        # Until `start` tells, the launcher's variable does; ranks are not known yet.
        self._main = os.environ.get("RANK", "0") == "0"
        self._run: Run | None = None
        self._status = Status()
        self._live: Live | None = None
        self._began = (0.0, 0)
        self._shown = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- lines -----------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Show a line, unless quiet."""
        if self._main and not self.quiet:
            self._print(line, self._out)

    def warn(self, line: str) -> None:
        """Show a line on standard error, quiet or not."""
        if self._main:
            self._print(line, self._errors)

    def _print(self, line: str, output: Output) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            output.write(line + "\n")
            output.flush()

    # --- a run -----------------------------------------------------------------------------------

    def start(self, run: Run, precision: str) -> None:
        """Show what runs where, and begin to show progress."""
        self._run, self._main = run, run.is_main
        self._began = (self._clock(), run.clock.step)
        self._shown = run.clock.step // self._interval() - 1
        self._status = Status(run.clock.step, run.clock.total_steps, run.clock.steps_per_epoch)
        self._status.phases = run.phases[1:] != ()
        self.say(first_line(run, precision))
        self.say(second_line(run))
        if self._main and not self.quiet and self._out.is_interactive:
            self._start_live()

    def _start_live(self) -> None:
        from rich.live import Live

        console = self._out.rich()
        self._live = Live(
            self._status,
            console=console,
            # No thread: a fork of the data workers could inherit its lock. Records come often enough.
            auto_refresh=False,
            transient=True,
            # What goes to a file must not come back to the terminal.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start(refresh=True)
        # A process that is killed could not bring the cursor back.
        console.show_cursor(show=True)

    def show(self, record: Mapping[str, Any]) -> None:
        """Show a record as its kind asks for."""
        kind = record.get("kind")
        if kind == "train":
            self.train(record)
        elif kind == "evaluation":
            self.evaluation(record)
        elif kind == "verdict":
            self.warn(f"step {record['step']}: {record['action']}: {record['reason']}")
        elif "message" in record:
            self.warn(f"{record.get('level', kind)}: {record['message']}")

    def train(self, record: Mapping[str, Any]) -> None:
        """Show a training record: on a terminal at once, elsewhere if it is time for a line."""
        if self._run is None:
            return
        step = int(record["step"])
        elapsed, done = self._clock() - self._began[0], step - self._began[1]
        left = time_left(done, self._status.total - step, elapsed)
        self._status.see(record, left)
        if self._live is not None:
            self._live.refresh()
        elif step // self._interval() > self._shown:
            self._shown = step // self._interval()
            self.say(train_line(record, self._status.total, left))

    def _interval(self) -> int:
        """Return the steps between two plain lines; they do not depend on time."""
        if self._run is None:
            return 1
        clock = self._run.clock
        per_epoch = math.ceil(clock.steps_per_epoch / LINES_AN_EPOCH)
        return max(1, per_epoch, math.ceil(clock.total_steps / LINES_A_RUN))

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Show an evaluation."""
        main = self._run.task.main_metric if self._run else ""
        if not record.get("view") and main in record:
            self._status.metric = f"{record['split']} {main} {number(record[main])}"
        self.say(evaluation_line(record))  # draws the live line again, too

    def finish(self, outcome: Outcome) -> None:
        """Show the result: why the run ended, tables of the final metrics, and what was written."""
        self.close()
        if not self._main:
            return
        self.say(f"\n{outcome.reason}; {clock_time(outcome.seconds)}")
        if outcome.best:
            best = outcome.best
            self.say(
                f"weights of step {best['step']}: best validation {best['metric']} "
                f"{number(best['value'])}"
            )
        names = self._run.task.head.names if self._run else ()
        self.metrics(outcome.split, outcome.metrics, names)
        paths = [f"{name:<12} {path}" for name, path in written(outcome).items()]
        self.say("\n".join(["", *paths]))
        if self.as_json:
            self.result({**vars(outcome), "written": written(outcome)})

    def metrics(
        self,
        title: str,
        values: Mapping[str, Any],
        names: tuple[str, ...] = (),
        *,
        per_class: bool = False,
    ) -> None:
        """Show the metrics of a split: one table, one of the classes, the confusion matrix."""
        if not self._main or self.quiet or not values:
            return
        from sft_engine.result_tables import tables

        console = self._out.rich()
        for table in tables(title, values, names, console, per_class=per_class):
            console.print()
            console.print(table)

    def result(self, value: Mapping[str, Any]) -> None:
        """Print a JSON object on standard output (rank 0). NaN becomes the text "NaN"."""
        if self._main:
            text = json.dumps(plain_value(value), allow_nan=False, ensure_ascii=True)
            self._result.write(text + "\n")
            self._result.flush()

    def close(self) -> None:
        """Take the live line away and give the terminal back; may be called again."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()


# --- the live line --------------------------------------------------------------------------------


@dataclass
class Status:
    """The live line; it leaves out what a narrow terminal has no room for.

    Args:
        step: Steps done.
        total: Steps of the run.
        steps_per_epoch: Steps of one epoch.
        metric: Latest evaluation, as text.
        phases: Whether there are several, so that the live line names the current one.
    """

    step: int = 0
    total: int = 1
    steps_per_epoch: int = 1
    metric: str = ""
    phases: bool = False
    _phase: str = field(default="", init=False)
    _loss: str = field(default="", init=False)
    _speed: str = field(default="", init=False)
    _left: str = field(default="", init=False)

    def see(self, record: Mapping[str, Any], left: str) -> None:
        """Take over a training record."""
        self.step = int(record["step"])
        self._phase = str(record.get("phase", ""))
        self._loss = f"loss {number(record.get('loss', math.nan))}"
        self._speed = f"{record.get('examples_per_second', math.nan):.1f} examples/s"
        self._left = f"{left} left" if left else ""

    def parts(self, width: int) -> list[str]:
        """Return the parts of the line that fit into a width, most important ones kept."""
        epochs = self.total / self.steps_per_epoch
        parts = [
            self._phase
            if self.phases
            else f"epoch {min(self.step / self.steps_per_epoch, epochs):.2f}/{epochs:g}",
            f"step {self.step}/{self.total}",
            self._loss,
            self._speed,
            self._left,
            self.metric,
        ]
        kept = [part for part in parts if part]
        for expendable in (parts[3], parts[0], self.metric, self._left, self._loss):
            if sum(map(len, kept)) + 2 * (len(kept) - 1) <= width:
                break
            kept = [part for part in kept if part != expendable]
        return kept

    def __rich_console__(
        self, console: rich.console.Console, options: ConsoleOptions
    ) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        text = "  ".join(self.parts(options.max_width))
        room = min(WIDEST_BAR, options.max_width - len(text) - 2)
        line = Text(text, no_wrap=True, overflow="ellipsis")
        if room < NARROWEST_BAR:
            yield line
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=self.total, completed=self.step, width=room), line)
        yield grid
