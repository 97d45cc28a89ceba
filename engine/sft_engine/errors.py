"""What can go wrong for a user, each kind with the exit code that the command line returns.

A message is one sentence: where (file and key), what was found, what is allowed, the next step.
"""

from __future__ import annotations


class SftError(Exception):
    """A problem that the user can act on: shown as a sentence, never as a traceback."""

    exit_code = 1
    elsewhere = False
    """Whether another process of the run failed, which says so itself."""


class RecipeError(SftError):
    """The recipe, or a plugin that it names, is wrong: nothing was built or written."""

    exit_code = 2


class DataError(SftError):
    """The data does not fit the recipe: missing column, unknown label, unreadable file."""

    exit_code = 3


class DivergedError(SftError):
    """Training stopped because the loss or the gradients are no longer finite, or a verdict said so."""

    exit_code = 4


class Interrupted(SftError):
    """A signal stopped the run; a complete checkpoint was written, `resume` goes on from it."""

    exit_code = 75


class OutOfMemoryError(SftError):
    """The memory does not suffice, not even for one example at a time."""


class OutputError(SftError):
    """The run folder cannot be written: disk full, no permission, or it holds something else."""


class ExportError(SftError):
    """The model cannot be exported, or gives other outputs when it is."""


class CheckpointError(SftError):
    """No complete checkpoint can be read, or it does not belong to this recipe."""
