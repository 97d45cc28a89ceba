"""Run folders to compare, and the command line that compares them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of

sys.path.insert(0, str(Path(__file__).parent))  # for `compared_folders`

from compared_folders import Folders


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


@pytest.fixture
def sft(capsys):
    """Run the command line in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = exit_code_of(cli, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
