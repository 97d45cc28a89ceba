"""Which runs a study has, and which examples they see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sft_engine import DataError, RecipeError, order
from sft_engine.drawing import drawn
from sft_engine.settings import DataSettings, SeedSettings
from sft_engine.study.design import cells_of, make_design
from sft_engine.study.hopeless import is_hopeless

CLASSES = np.array([0] * 60 + [1] * 39 + [2])


def settings(draw, number=0, **more):
    return DataSettings(draw=draw, draw_number=number, **more)


def test_a_bootstrap_draws_as_many_of_each_class_with_replacement():
    ids = drawn(100, settings("bootstrap"), CLASSES)
    assert np.bincount(CLASSES[ids]).tolist() == [60, 39, 1]
    assert len(np.unique(ids)) < 80  # about 63 of 100


def test_bootstraps_leave_out_a_share_of_one_over_e():
    left = [1 - len(np.unique(drawn(1000, settings("bootstrap", i)))) / 1000 for i in range(20)]
    assert np.mean(left) == pytest.approx((1 - 1 / 1000) ** 1000, abs=0.005)


def test_a_subsample_draws_a_share_without_replacement():
    ids = drawn(100, settings("subsample", draw_share=0.5), CLASSES)
    assert len(np.unique(ids)) == len(ids) == 50
    assert np.bincount(CLASSES[ids]).tolist() == [30, 19, 1]


@pytest.mark.parametrize("strata", [None, np.array([0, 1] * 50)])
def test_every_example_is_left_out_by_one_fold(strata):
    left = [np.setdiff1d(np.arange(100), drawn(100, settings("fold", i), strata)) for i in range(4)]
    assert [len(each) for each in left] == [25] * 4
    assert sorted(np.concatenate(left)) == list(range(100))
    if strata is not None:
        assert all(abs(strata[each].mean() - 0.5) < 0.03 for each in left)


def test_no_fold_loses_a_class():
    for number in range(4):
        assert set(CLASSES[drawn(100, settings("fold", number), CLASSES)]) == {0, 1, 2}


@pytest.mark.parametrize("draw", ["bootstrap", "subsample", "fold"])
def test_a_draw_is_a_function_of_its_number_and_the_split_seed(draw):
    first = drawn(100, settings(draw))
    assert np.array_equal(first, drawn(100, settings(draw, subset=7, test=0.3)))
    assert not np.array_equal(first, drawn(100, settings(draw, 1)))
    assert not np.array_equal(first, drawn(100, settings(draw, split_seed=1)))


def test_a_fold_that_is_not_there():
    with pytest.raises(
        DataError, match=r"draw_number = 4 of draw_folds = 4: there are folds 0 to 3"
    ):
        drawn(100, settings("fold", 4))


def test_four_draws_times_four_seeds_are_the_default():
    cells = cells_of(make_design(), SeedSettings(seed=3))
    assert len({(c.data, c.seed) for c in cells}) == len({c.name for c in cells}) == 16
    assert [c.name for c in cells[:2]] == ["data-00-seed-00", "data-01-seed-00"]
    # Seed number s is what `seed = 3 + s` derives.
    for cell in cells:
        for name in ("init", "order", "noise"):
            assert getattr(cell, name) == order.mix(3 + cell.seed, order.name_key(name)) >> 1


def test_what_does_not_vary_is_the_recipes_own():
    design = make_design(seeds=3, vary=("init",))
    cells = cells_of(design, SeedSettings(seed=0, order=5))
    assert len(cells) == 3
    assert {c.order for c in cells} == {5}
    assert len({c.noise for c in cells}) == 1
    assert len({c.init for c in cells}) == 3
    assert not any("draw" in text for cell in cells for text in cell.overrides(design))


def test_names_of_draws_in_the_recipe():
    design = make_design(data=3, resample="kfold", vary=("data",))
    assert cells_of(design, SeedSettings())[2].overrides(design)[-3:] == [
        "data.draw=fold",
        "data.draw_number=2",
        "data.draw_folds=3",
    ]
    assert dataclasses.asdict(design)["seeds"] == 1


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"vary": ("inti",)}, "--vary: found 'inti'; did you mean"),
        ({"resample": "jackknife"}, "--resample: found 'jackknife'; allowed: `bootstrap`"),
        ({"data": 2, "vary": ("init",)}, "--data 2, but --vary does not name data"),
        ({"seeds": 2, "vary": ("data",)}, "--seeds 2, but --vary does not name init, order or"),
        ({"data": 1, "seeds": 1}, "one run shows nothing"),
        ({"data": 1, "seeds": 2, "resample": "kfold"}, "set --data to 2 or more"),
    ],
)
def test_what_makes_no_study(asked, sentence):
    with pytest.raises(RecipeError, match=sentence.replace("(", r"\(")):
        make_design(**asked)


def test_hopeless_is_clearly_behind_the_median():
    others = [0.80, 0.82, 0.84, 0.86, 0.88]  # median 0.84, scaled deviation 0.0297
    assert not is_hopeless(0.76, others, larger_is_better=True)
    assert is_hopeless(0.74, others, larger_is_better=True)
    assert is_hopeless(float("nan"), others, larger_is_better=True)
    assert not is_hopeless(0.1, others, larger_is_better=False)
    assert is_hopeless(0.95, others, larger_is_better=False)
    # Where all others agree, a twentieth of the median is the least.
    assert not is_hopeless(0.96, [1.0] * 5, larger_is_better=True)
    assert is_hopeless(0.94, [1.0] * 5, larger_is_better=True)
    assert not is_hopeless(0.0, [0.9, 0.9], larger_is_better=True)
