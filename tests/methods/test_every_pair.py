"""Every component of the shelf beside each of the others: two steps, or a refusal that says why."""

from __future__ import annotations

import pytest
from cases import (
    CASES,
    assert_finite,
    excludes,
    home_of,
    needs,
    pairs,
    recipe,
    refusal,
    trained,
)


@pytest.mark.slow
@pytest.mark.parametrize("first", CASES)
def test_every_pair_trains_or_is_refused(tmp_path, first):
    """Two steps each; in the order of the recipe that is the other one than that of the table too."""
    for one, second in pairs():
        if one != first or not home_of((first, second)):
            continue
        said = refusal(second, first)
        assert bool(said) == excludes(first, second), said
        if not said:
            text = recipe(second, first, final=False)
            overrides = ["train.steps=2", *needs((first, second))]
            assert_finite(trained(tmp_path / second, text, overrides))
