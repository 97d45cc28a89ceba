"""Fixtures."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import one_step


@pytest.fixture
def seen(tmp_path):
    """Return `one_step.run_one` with a folder of its own for every call."""
    number = itertools.count()
    yield lambda *args, **options: one_step.run_one(
        tmp_path / f"run{next(number)}", *args, **options
    )
    one_step.SEEN.clear()
