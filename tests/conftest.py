"""The command line in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of


@pytest.fixture
def sft(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; return exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = exit_code_of(cli, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
