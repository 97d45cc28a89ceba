"""Learning rates by hand, and in the optimizer of a run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from freezing_parts import COMPONENTS, Note

from sft_engine import RecipeError
from sft_engine.flow import ParameterGroup
from sft_engine.testing.runs import TINY, run_recipe
from sft_freezing.rates import decayed, scale_rates, spread
from sft_freezing.relative import rates_from, relative_norm

SHORT = ["train.steps=4", "optimizer.use=sgd", "optimizer.lr=0.1", "schedule.use=constant"]
TEXT = TINY + '[[extension]]\nuse = "test/note"\n'


def test_decay_by_hand():
    assert decayed(4, 0.5) == [0.125, 0.25, 0.5, 1.0]
    assert decayed(4, 0.5, least=0.2) == [0.2, 0.25, 0.5, 1.0]
    assert decayed(3, 1.0) == [1.0, 1.0, 1.0]


def test_ulmfit_has_2_6_times_less_for_each_group_down():
    rates = decayed(4, 1 / 2.6)
    assert [above / below for below, above in itertools.pairwise(rates)] == pytest.approx([2.6] * 3)


def test_slices_of_fastai_by_hand():
    """even_mults(lo, hi, 3) = lo, sqrt(lo hi), hi; slice(hi) = hi / 10 for all but the last."""
    assert spread(3, 0.01) == pytest.approx([0.01, 0.1, 1.0])
    assert spread(4, 0.1, "body") == [0.1, 0.1, 0.1, 1.0]
    assert spread(3, 1.0) == [1.0, 1.0, 1.0]
    assert spread(1, 0.1) == [1.0]


def test_scales_multiply_what_others_have_set():
    groups = [ParameterGroup(["a"], 0, lr_scale=3.0), ParameterGroup(["b"], 1)]
    scale_rates(groups, [0.5, 0.25])
    assert [group.lr_scale for group in groups] == [1.5, 0.25]


def rates_of(folder, extension, *overrides):
    """Return the rates of embeddings, blocks and head in the first step."""
    run_recipe(
        folder / "run", f"{TEXT}[[extension]]\n{extension}\n", [*SHORT, *overrides], COMPONENTS
    )
    return Note.rates[0]


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ('use = "layer-decay"\ndecay = 0.5', [0.0125, 0.025, 0.05, 0.1]),
        ('use = "layer-decay"\ndecay = 0.5\nhead = 10.0', [0.0125, 0.025, 0.05, 1.0]),
        ('use = "layer-decay"\ndecay = 0.5\nleast = 0.3', [0.03, 0.03, 0.05, 0.1]),
        ('use = "discriminative"\nlowest = 0.001', [1e-4, 1e-3, 1e-2, 0.1]),
        ('use = "discriminative"\nshape = "body"', [0.01, 0.01, 0.01, 0.1]),
        ('use = "discriminative"\nfactors = [0, 1, 2, 3]', [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_rates_in_the_optimizer(tmp_path, extension, expected):
    assert rates_of(tmp_path, extension) == pytest.approx(expected)


def test_a_phase_keeps_the_ratios(tmp_path):
    text = (
        f'{TEXT}[[extension]]\nuse = "layer-decay"\ndecay = 0.5\n[[phase]]\nname = "a"\nsteps = 1\n'
    )
    text += '[[phase]]\nname = "b"\nsteps = 1\nlr = 0.8\n'
    run_recipe(tmp_path / "run", text, SHORT, COMPONENTS)
    assert Note.rates[1] == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_the_number_of_factors_is_checked(tmp_path):
    with pytest.raises(RecipeError, match=r"found 2, and the model has 4 layer groups: embeddings"):
        rates_of(tmp_path, 'use = "discriminative"\nfactors = [1, 2]')


# --- Auto-RGN --------------------------------------------------------------------------------------


def test_relative_norm_by_hand():
    gradient, weight = torch.tensor([3.0, 4.0]), torch.tensor([[6.0], [8.0]])
    assert relative_norm([gradient], [weight]) == pytest.approx(0.5)
    assert relative_norm([gradient, None], [weight, torch.zeros(3)]) == pytest.approx(0.5)
    assert relative_norm([gradient], [torch.zeros(2)]) == math.inf
    assert relative_norm([None], [weight]) == 0.0


def test_factors_are_shares_of_the_largest():
    norms = {"a": 0.5, "b": 2.0, "c": 0.0, "new": math.inf}
    assert rates_from(norms) == {"a": 0.25, "b": 1.0, "c": 0.0, "new": 1.0}
    assert rates_from(norms, power=0.5)["a"] == 0.5
    assert set(rates_from(norms, power=0).values()) == {1.0}
    assert rates_from({"a": 0.0}) == {"a": 0.0}


@pytest.mark.parametrize("per", ["tensor", "group"])
def test_auto_rgn_in_a_run(tmp_path, per):
    """The step of plain SGD says which rate each tensor had: w0 - w1 = lr RGN / max RGN g."""
    run_recipe(
        tmp_path / "run",
        f'{TEXT}[[extension]]\nuse = "auto-rgn"\nper = "{per}"\n',
        [*SHORT, "train.clip_norm=0", "backbone.dtype=float64", "optimizer.momentum=0"],
        COMPONENTS,
    )
    before, gradients, after = (Note.steps[0][key] for key in ("weights", "gradients", "after"))
    units = {name: name if per == "tensor" else group for name, group in Note.group_of.items()}
    squares = {unit: [0.0, 0.0] for unit in units.values()}
    for name, unit in units.items():
        squares[unit][0] += gradients[name].square().sum().item()
        squares[unit][1] += before[name].square().sum().item()
    norms = {u: math.sqrt(g / w) if w else math.inf for u, (g, w) in squares.items()}
    largest = max(norm for norm in norms.values() if math.isfinite(norm))
    for name, unit in units.items():
        factor = norms[unit] / largest if math.isfinite(norms[unit]) else 1.0
        expected = before[name] - 0.1 * factor * gradients[name]
        torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-14)


def test_auto_rgn_measures_again_in_every_epoch_and_when_more_trains(tmp_path):
    """Three steps an epoch: steps 0 and 3; and step 2, where all thaw."""
    text = f'{TEXT}[[extension]]\nuse = "auto-rgn"\nper = "group"\n'
    text += '[freezing]\nuse = "lp-ft"\nuntil = 0.5\n'
    run_recipe(tmp_path / "run", text, SHORT, COMPONENTS)
    rates = Note.rates
    assert rates[0] == rates[1] == [0.1] * 4  # the head alone is the largest
    assert rates[2] != rates[1]
    assert rates[3] != rates[2]
    assert max(rates[2]) == pytest.approx(0.1)
