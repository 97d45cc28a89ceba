"""Tiny runs at half their cost: what they have in common is computed once."""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path

import datasets.arrow_dataset
import pytest

from sft_engine import catalog, records

sys.path.insert(0, str(Path(__file__).parent))  # for `cases`


@pytest.fixture(scope="module", autouse=True)
def shared_costs():
    """Keep signatures and versions, which do not change, and number data sets instead of hashing them."""
    numbers = map("{:016x}".format, itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.arrow_dataset, "generate_fingerprint", lambda _: next(numbers))
        patch.setattr(catalog, "signature_of", functools.cache(catalog.signature_of))
        patch.setattr(records, "library_versions", functools.cache(records.library_versions))
        yield
