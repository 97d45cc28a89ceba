"""Makes `ills` and `diagnosis_parts` importable, and reads once what does not change."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from sft_engine import catalog, records

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def shared_costs():
    """Read signatures and versions once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "signature_of", functools.cache(catalog.signature_of))
        patch.setattr(records, "library_versions", functools.cache(records.library_versions))
        yield
