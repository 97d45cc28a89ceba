"""Regularizers that look at weights alone do not stand in the way of replay."""

from __future__ import annotations

import pytest
from recorded import FROZEN, NOISY, OFF, ON, same_curves

from sft_engine import RecipeError
from sft_engine.testing.runs import run_recipe

WEIGHTS_ALONE = {
    "l1": 'form = "subgradient"\nstrength = 0.01',
    "l2": "strength = 0.1",
    "elastic-net": "strength = 0.1",
    "orthogonal": "strength = 0.01",
    "l2-sp": 'alpha = 0.1\nweight_decay = "off"',
}


def with_regularizer(name, options=""):
    return FROZEN + f'[[regularizer]]\nuse = "{name}"\n{options}\n'


@pytest.mark.parametrize(("name", "options"), WEIGHTS_ALONE.items())
def test_penalties_on_weights_are_the_same_with_replay(name, options, tmp_path):
    text = with_regularizer(name, options)
    for folder, replay in (("on", ON), ("off", OFF)):
        run_recipe(tmp_path / folder, text, [*NOISY, replay])
    assert same_curves(tmp_path / "on", tmp_path / "off")


def test_what_reads_features_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"`r-drop`|r-drop"):
        run_recipe(tmp_path / "run", with_regularizer("r-drop"), [*NOISY, ON])
