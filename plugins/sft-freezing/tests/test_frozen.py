"""What is frozen does not move: weights, statistics, state of the optimizer."""

from __future__ import annotations

import pytest
from freezing_parts import COMPONENTS, Watch, moved
from safetensors.torch import load_file

from sft_engine import Interrupted, LayerGroup, RecipeError
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_freezing.frozen import Frozen, frozen_parameters

GROUPS = [
    LayerGroup("embeddings", ("embeddings.weight",)),
    LayerGroup("block.0", ("blocks.0.weight", "blocks.0.bias")),
    LayerGroup("block.1", ("blocks.1.weight", "blocks.1.bias")),
    LayerGroup("classifier", ("norm.weight", "head.weight")),
]
HARD = [
    "optimizer.lr=0.01",
    "optimizer.weight_decay=0.1",
    "train.decay_all=true",
    "checkpoint.best=last",
]


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"norm.weight", "head.weight"}),
        ({"keep": ("head", "block.1")}, {*GROUPS[2].parameters, *GROUPS[3].parameters}),
        ({"keep": ("*.bias",)}, {"blocks.0.bias", "blocks.1.bias"}),
        ({"first": 1}, {p for g in GROUPS[1:] for p in g.parameters}),
        ({"first": 3}, set(GROUPS[3].parameters)),
        ({"patterns": ("block.*",)}, {"embeddings.weight", *GROUPS[3].parameters}),
        ({"patterns": ("*.bias",)}, {p for g in GROUPS for p in g.parameters if "bias" not in p}),
        ({"first": 1, "patterns": ("block.1",)}, {*GROUPS[1].parameters, *GROUPS[3].parameters}),
    ],
)
def test_what_is_frozen(options, trained):
    everything = {name for group in GROUPS for name in group.parameters}
    assert frozen_parameters(GROUPS, **options) == everything - trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 4}, r"`freezing`: this freezes the whole model \(embeddings, .*, classifier\)"),
        (
            {"patterns": ("blok.*",)},
            r'`freezing.patterns`: "blok.\*" matches neither a layer group',
        ),
        ({"keep": ("tail",)}, r'`freezing.keep`: "tail" matches neither .*`embeddings.weight`'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(RecipeError, match=message):
        frozen_parameters(GROUPS, **options)


# --- in a run --------------------------------------------------------------------------------------


TEXT = (
    TINY.replace('"tiny/text"', '"test/normed"')
    + '[[extension]]\nuse = "test/watch"\n[freezing]\nuse = "frozen"\n'
)


def test_frozen_weights_and_statistics_are_bit_equal(tmp_path):
    run_recipe(tmp_path / "run", TEXT, HARD, COMPONENTS)
    start, end = Watch.states
    assert moved(start, end) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    saved = load_file(tmp_path / "run/model/model.safetensors")
    assert moved(end, saved) == set()


def test_statistics_of_what_trains_do_move(tmp_path):
    run_recipe(tmp_path / "run", TEXT, [*HARD, "freezing.first=2"], COMPONENTS)
    names = moved(*Watch.states)
    assert {"blocks.1.1.running_mean", "blocks.1.0.weight", "head.weight"} <= names
    assert not {name for name in names if name.startswith(("embeddings", "blocks.0"))}


PHASES = """
[[phase]]
name = "head"
steps = 4
[[phase]]
name = "all"
steps = 4
"""


def test_only_in_the_phases_that_are_named(tmp_path):
    run_recipe(tmp_path / "run", TEXT + PHASES, [*HARD, 'freezing.phases=["head"]'], COMPONENTS)
    start, middle, end = Watch.states
    assert moved(start, middle) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert moved(middle, end) == set(start)


def test_what_another_component_froze_is_not_thawed(tmp_path):
    text = TEXT + '[[extension]]\nuse = "test/frozenbelow"\n' + PHASES
    run_recipe(tmp_path / "run", text, [*HARD, 'freezing.phases=["head"]'], COMPONENTS)
    _, middle, end = Watch.states
    assert moved(middle, end) == set(end) - {"embeddings.weight"}


def test_a_resumed_run_is_frozen_where_it_would_have_been(tmp_path):
    overrides = [*HARD, 'freezing.phases=["head"]']
    text = TEXT + PHASES
    whole = run_recipe(tmp_path / "whole", text, overrides, COMPONENTS)
    for stop in (2, 4, 6):
        folder = tmp_path / f"parted-{stop}"
        with pytest.raises(Interrupted):
            run_recipe(folder, text, overrides, COMPONENTS, stop_after=stop)
        again = run_recipe(folder, text, overrides, COMPONENTS, resume=True)
        assert again.fingerprint == whole.fingerprint


def test_a_phase_that_is_not_there_is_named_with_its_line():
    with pytest.raises(RecipeError) as raised:
        plan_recipe(TINY + '[freezing]\nuse = "frozen"\nphases = ["haed"]\n' + PHASES)
    expected = (
        'recipe.toml:18: `freezing.phases[0]`: the recipe has no phase "haed"; it has: head, all.'
    )
    assert str(raised.value) == expected


def test_one_pattern_may_stand_alone():
    assert Frozen(keep="block.*").keep == ("block.*",)
