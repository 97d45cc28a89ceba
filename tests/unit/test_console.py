"""The console on a real terminal (a pty), in a file, as JSON, and where things go wrong."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, cast

import pytest
import torch
from accelerate import Accelerator

from sft_engine.components import Head
from sft_engine.console import Console, Status
from sft_engine.console_lines import (
    clock_time,
    number,
    plain_value,
    second_line,
    time_left,
    train_line,
)
from sft_engine.flow import Clock, Phase
from sft_engine.output import Output
from sft_engine.result_tables import MATRIX_CLASSES, MOST_CLASSES
from sft_engine.training import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sft_engine.flow import Run

EVALUATION = {
    "kind": "evaluation",
    "split": "validation",
    "view": "",
    "step": 310,
    "epoch": 1.0,
    "seconds": 1.5,
    "examples": 100,
    "accuracy": 0.84124,
    "nll": 0.35,
    "f1/negative": 0.8,
    "confusion_matrix": [[1, 2], [3, 4]],
}


def a_run(total: int = 930, per_epoch: int = 310, **changes: Any) -> Run:
    """Return what the console asks a run for."""
    accelerator = Accelerator(cpu=True)
    parts: dict[str, Any] = {
        "plan": SimpleNamespace(recipe=SimpleNamespace(path=Path("recipes/bert_sentiment.toml"))),
        "folder": Path("runs/bert"),
        "accelerator": accelerator,
        "device": accelerator.device,
        "is_main": True,
        "splits": {"train": range(9900), "validation": range(1057)},
        "task": SimpleNamespace(
            main_metric="accuracy", head=Head("classification", 2, ("negative", "positive"))
        ),
        "clock": Clock(total_steps=total, steps_per_epoch=per_epoch),
        "phases": (Phase("train", {"data": 1.0}, total, per_epoch),),
        "skeleton": None,
    }
    return cast("Run", SimpleNamespace(**parts | changes))


def a_record(step: int, per_epoch: int = 310, loss: float = 0.693147) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "epoch": step / per_epoch,
        "loss": loss,
        "loss/task": loss,
        "lr": 5e-5,
        "grad_norm": 1.5,
        "examples_per_second": 97.25,
    }


def an_outcome(folder: Path, **changes: Any) -> Outcome:
    parts: dict[str, Any] = {
        "folder": folder,
        "reason": "all steps done",
        "split": "test",
        "metrics": {
            "accuracy": 0.8512,
            "nll": math.nan,
            "f1/negative": 0.84,
            "f1/positive": 0.86,
            "recall/negative": 0.8,
            "recall/positive": 0.9,
            "confusion_matrix": [[430, 70], [61, 439]],
        },
        "best": {"step": 620, "metric": "accuracy", "value": 0.8499},
        "fingerprint": "abc",
        "seconds": 251.4,
    }
    return Outcome(**parts | changes)


class Ticking:
    """A clock that goes on by a fixed time at each look."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def shown(*records: dict[str, Any], run: Run | None = None, seconds: float = 1.0) -> list[str]:
    """Return the plain lines of a run, without the two that say what runs."""
    stream = io.StringIO()
    console = Console(stream=stream, errors=stream, clock=Ticking(seconds))
    console.start(run or a_run(), "bf16")
    for record in records:
        console.show(record)
    return stream.getvalue().splitlines()[2:]


# --- In a file ------------------------------------------------------------------------------------


def test_the_first_line_says_where_a_run_runs() -> None:
    stream = io.StringIO()
    Console(stream=stream).start(a_run(), "bf16")
    first, second = stream.getvalue().splitlines()
    threads = torch.get_num_threads()
    assert re.fullmatch(
        r"sft-engine (\d\S+|\(not installed\)): bert_sentiment.toml on 1 process, cpu, bf16, "
        f"{threads} threads?",
        first,
    )
    assert second == (
        "examples: train 9,900, validation 1,057; 930 steps, 310 an epoch; run folder runs/bert"
    )


def test_several_processes_are_counted() -> None:
    stream = io.StringIO()
    run = a_run(accelerator=SimpleNamespace(num_processes=4))
    Console(stream=stream).start(run, "fp32")
    assert re.search(r" on 4 processes, cpu, fp32, \d+ threads? each\n", stream.getvalue())


def test_records_become_lines_that_a_script_can_read() -> None:
    assert shown(a_record(16), EVALUATION, seconds=8.0) == [
        (
            "train step=16/930 epoch=0.05 loss=0.6931 lr=5e-05 grad_norm=1.5 "
            "examples_per_second=97.25 left=0:07:37"
        ),
        "evaluation split=validation step=310 accuracy=0.8412 nll=0.3500",
    ]


def test_a_view_is_named_and_nan_is_nan() -> None:
    view = {**EVALUATION, "view": "typos", "accuracy": math.nan}
    line = "evaluation split=validation view=typos step=310 accuracy=nan nll=0.3500"
    assert shown(view) == [line]
    assert " loss=nan " in shown(a_record(16, loss=math.nan))[0]


@pytest.mark.parametrize("every", [1, 10, 30])
@pytest.mark.parametrize("per_epoch", [7, 310, 5000])
def test_about_twenty_lines_an_epoch_whatever_the_time(every: int, per_epoch: int) -> None:
    steps = range(every, 3 * per_epoch + 1, every)
    records = [a_record(step, per_epoch) for step in steps]

    def lines(seconds: float) -> list[str]:
        run = a_run(3 * per_epoch, per_epoch)
        return [re.sub(" left=.*", "", line) for line in shown(*records, run=run, seconds=seconds)]

    quick = lines(0.001)
    assert quick == lines(100.0)
    assert min(len(records), 3 * 15) <= len(quick) <= 3 * 20 + 1


def test_a_very_long_run_has_at_most_four_hundred_lines() -> None:
    run = a_run(10_000, 10)
    assert len(shown(*[a_record(s, 10) for s in range(1, 10_001)], run=run)) <= 401


def test_a_resumed_run_counts_the_pace_from_where_it_began() -> None:
    run = a_run()
    run.clock.step = 900
    [line] = shown(a_record(910), run=run, seconds=10.0)
    assert line.endswith("left=0:00:20")


def test_notices_go_to_standard_error() -> None:
    stream, errors = io.StringIO(), io.StringIO()
    console = Console(stream=stream, errors=errors)
    console.show({"kind": "preflight", "level": "warning", "message": "12 duplicates"})
    console.show({"kind": "notice", "step": 3, "message": "out of memory"})
    console.show(
        {"kind": "verdict", "step": 4, "action": "skip", "reason": "spike", "examples": []}
    )
    assert stream.getvalue() == ""
    assert (
        errors.getvalue() == "warning: 12 duplicates\nnotice: out of memory\nstep 4: skip: spike\n"
    )


def test_the_end_shows_tables_and_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "report.json").touch()
    stream = io.StringIO()
    console = Console(stream=stream)
    console.start(a_run(), "bf16")
    console.finish(an_outcome(tmp_path))
    text = stream.getvalue()
    for row in [
        r"^all steps done; 0:04:11$",
        r"^weights of step 620: best validation accuracy 0\.8499$",
        r"^test +value *$",
        r"^accuracy +0\.8512 *$",
        r"^nll +nan *$",
        r"^class +f1 +recall *$",
        r"^negative +0\.8400 +0\.8000 *$",
        r"^true \\ predicted +negative +positive *$",
        r"^negative +430 +70 *$",
        r"^positive +61 +439 *$",
    ]:
        assert re.search(row, text, re.MULTILINE), row
    assert text.splitlines()[-2:] == [
        f"model        {tmp_path / 'model'}",
        f"report       {tmp_path / 'report.json'}",
    ]
    assert "\x1b" not in text


def test_class_names_are_shown_as_they_are() -> None:
    stream = io.StringIO()
    names = ("[bold]x[/bold]", ":smile:")
    values = {"f1/[bold]x[/bold]": 0.5, "f1/:smile:": 0.25, "confusion_matrix": [[1, 2], [3, 4]]}
    Console(stream=stream).metrics("test", values, names)
    for name in names:
        assert stream.getvalue().count(name) == 3


def test_many_classes_are_left_to_the_report_or_asked_for() -> None:
    def shown(size: int, **options: bool) -> str:
        stream = io.StringIO()
        values = {f"f1/class{i}": 0.5 for i in range(size)}
        values |= {"confusion_matrix": [[0] * size] * size}
        names = tuple(f"class{i}" for i in range(size))
        Console(stream=stream).metrics("test", values, names, **options)
        return stream.getvalue()

    size = MOST_CLASSES + 5
    assert shown(MOST_CLASSES).count("class") == MOST_CLASSES + 1 + 1  # the head, the matrix
    text = shown(size)
    assert (
        "values of 25 classes: in report.json, and by `sft-engine evaluate RUN --per-class`" in text
    )
    assert f"confusion matrix of {size} classes: in report.json" in text
    assert "class24" not in text
    assert shown(size, per_class=True).count("class2") == 6  # class2, class20 … class24


def test_multi_label_matrices_are_left_to_the_report() -> None:
    stream = io.StringIO()
    values = {"accuracy": 0.5, "confusion_matrix": [[[1, 2], [3, 4]], [[1, 2], [3, 4]]]}
    Console(stream=stream).metrics("test", values, ("a", "b"))
    assert "predicted" not in stream.getvalue()


# --- As JSON, quiet, on other ranks ---------------------------------------------------------------


def test_json_is_one_object_on_standard_output_and_nothing_else(tmp_path: Path) -> None:
    stream, errors = io.StringIO(), io.StringIO()
    console = Console(as_json=True, stream=stream, errors=errors)
    console.start(a_run(), "bf16")
    console.show(a_record(16))
    console.finish(an_outcome(tmp_path))
    [line] = stream.getvalue().splitlines()
    result = json.loads(line, parse_constant=pytest.fail)
    assert result["metrics"]["accuracy"] == 0.8512
    assert result["metrics"]["nll"] == "NaN"
    assert result["folder"] == str(tmp_path)
    assert result["written"] == {}
    assert "bert_sentiment.toml on 1 process" in errors.getvalue()
    assert "0.8512" in errors.getvalue()


def test_quiet_shows_warnings_alone(tmp_path: Path) -> None:
    stream, errors = io.StringIO(), io.StringIO()
    console = Console(quiet=True, stream=stream, errors=errors)
    console.start(a_run(), "bf16")
    console.show(a_record(16))
    console.show(EVALUATION)
    console.show({"kind": "notice", "message": "out of memory"})
    console.finish(an_outcome(tmp_path))
    assert (stream.getvalue(), errors.getvalue()) == ("", "notice: out of memory\n")


def test_quiet_json_is_json_alone(tmp_path: Path) -> None:
    stream, errors = io.StringIO(), io.StringIO()
    console = Console(quiet=True, as_json=True, stream=stream, errors=errors)
    console.start(a_run(), "bf16")
    console.finish(an_outcome(tmp_path))
    assert json.loads(stream.getvalue())["reason"] == "all steps done"
    assert errors.getvalue() == ""


@pytest.mark.parametrize("known_by", ["the launcher", "the run"])
def test_other_ranks_show_nothing(
    known_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, errors = io.StringIO(), io.StringIO()
    monkeypatch.setenv("RANK", "1" if known_by == "the launcher" else "0")
    console = Console(as_json=True, stream=stream, errors=errors)
    if known_by == "the run":
        console.start(a_run(is_main=False), "bf16")
    console.say("a line")
    console.warn("a warning")
    console.show(EVALUATION)
    console.finish(an_outcome(tmp_path))
    assert (stream.getvalue(), errors.getvalue()) == ("", "")


# --- On a terminal --------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal: what a program writes to it, escape sequences included."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        self.stream: IO[str] = open(slave, "w", encoding="utf-8")  # noqa: PTH123, SIM115

    def read(self) -> str:
        """Return everything that was written since the last call."""
        self.stream.flush()
        parts = []
        while True:
            try:
                parts.append(os.read(self._master, 65536))
            except BlockingIOError:
                return b"".join(parts).decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    made = Terminal()
    yield made
    made.close()


def without_escapes(text: str) -> list[str]:
    """Return the lines that were drawn, also those that were drawn over."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def screen(text: str) -> list[str]:
    """Return what a terminal would have on it, empty lines left out."""
    rows, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif token == "\x1b[2K":
            rows[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", token):
            row -= int(token[2:-1])
        elif not token.startswith("\x1b"):
            line = rows[row].ljust(column)
            rows[row] = line[:column] + token + line[column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in rows if line.strip()]


def cursor_is_visible(text: str) -> bool:
    return text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l")


def test_a_terminal_shows_one_live_line_and_keeps_evaluations(terminal: Terminal) -> None:
    console = Console(stream=terminal.stream, clock=Ticking(8.0))
    console.start(a_run(), "bf16")
    assert without_escapes(terminal.read())[-1].endswith("epoch 0.00/3  step 0/930")
    console.show(a_record(16))
    [line] = without_escapes(terminal.read())
    parts = ["epoch 0.05/3", "step 16/930", "loss 0.6931", "97.2 examples/s", "0:07:37 left"]
    assert line.split("  ")[-5:] == parts
    console.show(EVALUATION)
    kept, live = without_escapes(terminal.read())
    assert kept == "evaluation split=validation step=310 accuracy=0.8412 nll=0.3500"
    assert live.endswith("validation accuracy 0.8412")
    console.close()
    assert cursor_is_visible(terminal.read())


def test_the_live_line_is_gone_at_the_end(terminal: Terminal, tmp_path: Path) -> None:
    with Console(stream=terminal.stream, clock=Ticking(8.0)) as console:
        console.start(a_run(), "bf16")
        for step in range(10, 300, 10):
            console.show(a_record(step))
        console.show(EVALUATION)
        console.show(a_record(310))
        during = terminal.read()
        console.finish(an_outcome(tmp_path, metrics={}, best={}))
    after = during + terminal.read()
    kept = [
        "examples: train 9,900, validation 1,057; 930 steps, 310 an epoch; run folder runs/bert",
        "evaluation split=validation step=310 accuracy=0.8412 nll=0.3500",
    ]
    assert screen(during)[1:-1] == kept
    assert "step 310/930" in screen(during)[-1]
    assert screen(after)[1:] == [*kept, "all steps done; 0:04:11"]


def test_the_cursor_is_there_even_if_the_process_is_killed(terminal: Terminal) -> None:
    console = Console(stream=terminal.stream)
    console.start(a_run(), "bf16")
    console.show(a_record(16))
    assert cursor_is_visible(terminal.read())
    console.close()


def test_ctrl_c_leaves_the_terminal_clean(terminal: Terminal) -> None:
    before = (sys.stdout, sys.stderr)

    def interrupted() -> None:
        with Console(stream=terminal.stream) as console:
            console.start(a_run(), "bf16")
            console.show(a_record(16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = terminal.read()
    assert "step 16/930" in "".join(without_escapes(text))
    assert [line.split()[0] for line in screen(text)] == ["sft-engine", "examples:"]
    assert cursor_is_visible(text)
    assert (sys.stdout, sys.stderr) == before


def test_after_the_live_line_lines_go_on(terminal: Terminal) -> None:
    console = Console(stream=terminal.stream)
    console.start(a_run(), "bf16")
    console.close()
    console.close()
    terminal.read()
    console.say("after")
    assert terminal.read() == "after\r\n"


def test_what_goes_to_a_file_stays_there(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "errors.log").open("w", encoding="utf-8") as log:
        monkeypatch.setattr(sys, "stderr", log)
        with Console(stream=terminal.stream) as console:
            console.start(a_run(), "bf16")
            print("to the log", file=sys.stderr)
    assert (tmp_path / "errors.log").read_text(encoding="utf-8") == "to the log\n"
    assert "to the log" not in terminal.read()


def test_no_color_is_respected(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> str:
        with Console(stream=terminal.stream) as console:
            console.start(a_run(), "bf16")
            console.show(a_record(16))
        return terminal.read()

    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|38;\S+?)m")
    assert colour.search(written())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(written())


def test_a_dumb_terminal_gets_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Console(stream=terminal.stream) as console:
        console.start(a_run(), "bf16")
        console.show(a_record(16))
        console.finish(an_outcome(tmp_path))
    text = terminal.read()
    assert "\r\ntrain step=16/930 epoch=0.05 " in text
    assert "\x1b[" not in text


@pytest.mark.parametrize("columns", [12, 30, 50, 80])
def test_the_live_line_fits_a_narrow_terminal(
    columns: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with Console(stream=terminal.stream) as console:
        console.start(a_run(), "bf16")
        terminal.read()
        console.show(a_record(16))
        [line] = without_escapes(terminal.read())
    assert len(line) <= columns
    assert "step 16/930" in line
    assert ("loss 0.6931" in line) == (columns >= 30)


def test_a_matrix_too_wide_has_numbers_for_names(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"a rather long class name {i}" for i in range(5))
    values = {"confusion_matrix": [[10 * i + j for j in range(5)] for i in range(5)]}
    monkeypatch.setenv("COLUMNS", "80")
    Console(stream=terminal.stream).metrics("test", values, names)
    lines = without_escapes(terminal.read())
    assert any(re.fullmatch(r"true \\ predicted +0 +1 +2 +3 +4", line) for line in lines)
    assert any(re.fullmatch(r"3 a rather long class name 3 +30 +31 +32 +33 +34", x) for x in lines)
    monkeypatch.setenv("COLUMNS", "30")
    Console(stream=terminal.stream).metrics("test", values, names)
    assert "confusion matrix of 5 classes" in " ".join(without_escapes(terminal.read()))
    assert MATRIX_CLASSES > 5


# --- Where things go wrong ------------------------------------------------------------------------


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123
        console = Console(stream=stream, errors=io.StringIO())
        console.start(a_run(), "bf16")
        os.close(reader)
        console.show(EVALUATION)
        console.finish(an_outcome(tmp_path))


def test_an_interpreter_whose_reader_has_left_ends_well() -> None:
    program = (
        "from sft_engine.console import Console\n"
        "console = Console()\n"
        "for number in range(20000): console.say(f'line {number}')\n"
    )
    command = f'"{sys.executable}" -c "{program}" | head -n 1; echo ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("line 0\n0\n", "")


def test_a_terminal_that_goes_away_does_not_end_the_run() -> None:
    terminal = Terminal()
    console = Console(stream=terminal.stream)
    console.start(a_run(), "bf16")
    os.close(terminal._master)
    for step in range(10, 100, 10):
        console.show(a_record(step))
    console.close()
    terminal.stream.close()


def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    console = Console(stream=stream)
    values = {"f1/größe": 0.5, "f1/日本": 0.25}
    console.metrics("test", values)
    console.say("… größe")
    text = raw.getvalue().decode("ascii")
    assert "gr\\xf6\\xdfe" in text
    assert "\\u65e5\\u672c" in text
    assert text.endswith("\\u2026 gr\\xf6\\xdfe\n")


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    output = Output(stream)
    assert not output.is_interactive
    assert output.write("x") == 1


# --- Words and numbers ----------------------------------------------------------------------------


def test_the_least_important_parts_go_first() -> None:
    status = Status(0, 930, 310, metric="validation accuracy 0.8412")
    status.see(a_record(40), "0:04:10")
    whole = status.parts(200)
    assert len(whole) == 6
    widths = range(200, 10, -1)
    kept = [status.parts(width) for width in widths]
    for width, parts in zip(widths, kept, strict=True):
        assert len("  ".join(parts)) <= width or parts == ["step 40/930"]
    orders = [set(whole) - set(parts) for parts in kept]
    assert all(before <= after for before, after in pairwise(orders))
    assert kept[-1] == ["step 40/930"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.84124, "0.8412"),
        (1.0, "1.0000"),
        (0.0, "0.0000"),
        (5e-5, "5e-05"),
        (-0.5, "-0.5000"),
        (123456.7, "1.23e+05"),
        (17, "17"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_times() -> None:
    assert clock_time(3725.4) == "1:02:05"
    assert clock_time(0) == "0:00:00"
    assert time_left(10, 30, 5.0) == "0:00:15"
    assert time_left(0, 30, 5.0) == ""


def test_json_values() -> None:
    value = {"a": (1, Path("x")), 2: [math.inf, -math.inf, math.nan, None, True]}
    plain = {"a": [1, "x"], "2": ["Infinity", "-Infinity", "NaN", None, True]}
    assert plain_value(value) == plain


def test_importing_the_console_imports_nothing_heavy() -> None:
    program = "import sft_engine.console, sys; print({'rich', 'torch', 'numpy'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "set()\n"


# --- phases ----------------------------------------------------------------------------------------


def two_phases() -> Run:
    """Return a run of a hundred steps of one phase and eight hundred and thirty of another."""
    phases = (
        Phase("pretrain", {"source": 1.0}, 100, 50),
        Phase("joint", {"source": 1.0, "data": 0.5}, 830, 310, start=100, first_epoch=2),
    )
    return a_run(phases=phases)


def test_phases_are_named_with_their_steps() -> None:
    assert "930 steps, phases pretrain 100, joint 830; run folder" in second_line(two_phases())
    line = train_line(a_record(50) | {"phase": "pretrain"}, 930, "")
    assert line.startswith("train step=50/930 epoch=0.16 phase=pretrain loss=")


def test_the_live_line_names_the_phase() -> None:
    status = Status(50, 930, 50, phases=True)
    status.see(a_record(50) | {"phase": "pretrain"}, "")
    assert status.parts(200)[:2] == ["pretrain", "step 50/930"]
