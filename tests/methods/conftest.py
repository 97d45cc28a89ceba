"""Tiny runs at half their cost: what they have in common is computed once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `cases`
import cases


@pytest.fixture(scope="module", autouse=True)
def shared_costs():
    with cases.shared_costs():
        yield
