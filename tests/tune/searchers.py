"""Processes that search: forked from a server that has imported everything, so that they start at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "sft_engine.tuning",
        "sft_engine.cli.tune",
        "sft_engine.verbs",
        "sft_engine.builtin.tasks",
        "optuna",
    ]
)
PATIENCE = 120


def search(site: Path, output: Path, arguments: list[str], variables: dict[str, str]) -> None:
    """Run the command line in this process, and end it with its exit code."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= variables
    sys.path.insert(0, str(site))
    from sft_engine.cli import cli
    from sft_engine.cli.ending import exit_code_of

    sys.exit(exit_code_of(cli, arguments))


class Searcher:
    """A process that runs the command line in the current folder."""

    def __init__(self, site: Path, output: Path, arguments: list[str], **variables: str) -> None:
        if str(HERE) not in sys.path:  # the child takes over sys.path
            sys.path.insert(0, str(HERE))
        self.output = output
        self.process = SERVER.Process(target=search, args=(site, output, arguments, variables))
        self.process.start()

    def wait(self) -> int:
        """Return the exit code; that of a signal is negative."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, self.output.read_text()
        return self.process.exitcode

    def end(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.join()
