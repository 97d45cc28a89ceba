"""Makes the components of these tests importable by name, and tiny runs cheap."""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path

import datasets.arrow_dataset
import pytest

from sft_engine import catalog, records
from sft_engine.testing import runs

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def _shared_costs():
    """Keep what does not change from run to run, and number data sets instead of hashing them."""
    from freezing_parts import COMPONENTS

    numbers = map("{:016x}".format, itertools.count())
    plugins = runs.tiny_plugins(COMPONENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.arrow_dataset, "generate_fingerprint", lambda _: next(numbers))
        patch.setattr(catalog, "signature_of", functools.cache(catalog.signature_of))
        patch.setattr(records, "library_versions", functools.cache(records.library_versions))
        patch.setattr(runs, "tiny_plugins", lambda _: plugins)
        yield
