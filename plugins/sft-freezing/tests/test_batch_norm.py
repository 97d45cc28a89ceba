"""Batch norm that keeps its statistics while the rest trains."""

from __future__ import annotations

import pytest
import torch
from freezing_parts import COMPONENTS, Watch, moved

from sft_engine import RecipeError
from sft_engine.testing.runs import TINY, run_recipe

HARD = ["optimizer.lr=0.01", "checkpoint.best=last", "evaluation.every_steps=1", "train.steps=6"]
PLAIN = TINY.replace('"tiny/text"', '"test/normed"') + '[[extension]]\nuse = "test/watch"\n'
STATISTICS = {
    f"blocks.{i}.1.{name}"
    for i in range(2)
    for name in ("running_mean", "running_var", "num_batches_tracked")
}
AFFINE = {f"blocks.{i}.1.{name}" for i in range(2) for name in ("weight", "bias")}


def test_statistics_stay_and_weights_move(tmp_path):
    """Though every evaluation puts the model into evaluation mode and back."""
    text = PLAIN + '[[extension]]\nuse = "bn-freeze"\n'
    run_recipe(tmp_path / "run", text, HARD, COMPONENTS)
    start, end = Watch.states
    assert moved(start, end) == set(start) - STATISTICS


def test_scale_and_shift_too(tmp_path):
    text = PLAIN + '[[extension]]\nuse = "bn-freeze"\naffine = true\n'
    run_recipe(tmp_path / "run", text, HARD, COMPONENTS)
    start, end = Watch.states
    assert moved(start, end) == set(start) - STATISTICS - AFFINE


def test_beside_a_schedule(tmp_path):
    """What bn-freeze has frozen is not thawed with its layer group."""
    text = PLAIN + '[[extension]]\nuse = "bn-freeze"\naffine = true\n'
    text += '[freezing]\nuse = "gradual-unfreezing"\nuntil = 0.5\n'
    run_recipe(tmp_path / "run", text, HARD, COMPONENTS)
    start, end = Watch.states
    assert moved(start, end) == set(start) - STATISTICS - AFFINE


def test_after_a_share_of_the_run(tmp_path):
    text = PLAIN + '[[extension]]\nuse = "bn-freeze"\nafter = 0.5\n'
    run_recipe(tmp_path / "run", text, HARD, COMPONENTS)
    assert Watch.states[-1]["blocks.0.1.num_batches_tracked"] == 3


def test_after_the_end_is_absence_bit_for_bit(tmp_path):
    ends = []
    for extension in ("", '[[extension]]\nuse = "bn-freeze"\nafter = 1.0\n'):
        run_recipe(tmp_path / str(len(ends)), PLAIN + extension, HARD, COMPONENTS)
        ends.append(Watch.states[-1])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ("affine = true\nafter = 0.5", PLAIN, r"`after` is 0.5; leave one of them out"),
        ("", TINY, r"bn-freeze: TinyNet has no batch norm; leave bn-freeze out"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, text, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe(
            tmp_path / "run",
            f'{text}[[extension]]\nuse = "bn-freeze"\n{options}\n',
            HARD,
            COMPONENTS,
        )
    assert not (tmp_path / "run").exists()
