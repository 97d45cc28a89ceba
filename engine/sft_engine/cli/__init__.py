"""The command line: parsing and printing; what a verb does is a function of `verbs` or a neighbour.

Imports click and nothing else that takes time: `--help` answers before torch would have begun to load.
"""

from __future__ import annotations

import sys

from sft_engine.cli.ending import exit_code_of
from sft_engine.cli.group import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line on `sys.argv` and exit with its code."""
    sys.exit(exit_code_of(cli, sys.argv[1:]))
