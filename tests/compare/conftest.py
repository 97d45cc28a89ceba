"""Run folders to compare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `compared_folders`

from compared_folders import Folders


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)
