"""Training transforms: what they make, what decides it, and what they leave alone."""

from __future__ import annotations

import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sft_engine import RecipeError, order
from sft_engine.images import Pipeline
from sft_engine.testing.runs import run_recipe
from sft_torchvision.transforms import ImageTransforms, Transform, make_step

PIPELINE = Pipeline(size=(24, 32), interpolation="bicubic")
PLAIN = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3), "flip": 0.0}


def picture(width=64, height=48):
    draws = np.random.default_rng(0)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(image=None):
    file = io.BytesIO()
    (image or picture()).save(file, format="PNG")
    return {"image": {"bytes": file.getvalue(), "path": None}, "label": 3}


def changed(draws, pipeline=PIPELINE, image=None, **options):
    component = ImageTransforms(**options)
    component.check()
    return Transform(component, pipeline)(row(image), draws)


def test_a_row_becomes_pixels_of_the_input_size_and_keeps_the_rest():
    new = changed(order.generator(1, 2))
    assert new["label"] == 3
    assert new["image"].dtype == torch.uint8
    assert new["image"].shape == (3, 24, 32)


def test_draws_come_from_the_generator_alone():
    def make(*key):
        return changed(order.generator(*key), steps=({"name": "ColorJitter", "brightness": 0.5},))

    torch.manual_seed(0)
    one = make(1, 2)["image"]
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert torch.equal(make(1, 2)["image"], one)
    assert not torch.equal(make(1, 3)["image"], one)


def test_global_random_states_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    steps = (
        {"name": "RandAugment"},
        {"name": "RandomErasing", "p": 1.0},
        {"name": "ElasticTransform"},
    )
    changed(order.generator(0), steps=steps)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_the_whole_image_without_flip_is_pillows_resize():
    image = picture()
    new = changed(order.generator(0), image=image, **PLAIN)["image"]
    expected = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(new.permute(1, 2, 0).numpy(), expected)


def test_a_certain_flip_is_a_mirror():
    new = changed(order.generator(0), **{**PLAIN, "flip": 1.0})["image"]
    plain = changed(order.generator(0), **PLAIN)["image"]
    assert torch.equal(new, plain.flip(2))


def test_half_of_the_images_are_flipped():
    plain = changed(order.generator(0), **PLAIN)["image"]
    flips = [
        not torch.equal(changed(order.generator(i), **{**PLAIN, "flip": 0.5})["image"], plain)
        for i in range(200)
    ]
    assert 75 < sum(flips) < 125


def test_the_crop_keeps_the_share_of_the_area_that_scale_says():
    """A picture that is a ramp tells what part of it a crop has seen."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], axis=-1))
    shares = []
    for i in range(100):
        new = changed(order.generator(i), image=image, scale=(0.35, 0.5), flip=0.0)["image"]
        wide = int(new[0].max()) - int(new[0].min())
        high = int(new[1].max()) - int(new[1].min())
        shares.append(wide * high / 255**2)
    assert min(shares) > 0.30
    assert max(shares) < 0.53


def test_without_crop_the_geometry_is_that_of_evaluation():
    new = changed(order.generator(0), crop=False, flip=0.0)["image"]
    assert torch.equal(new, PIPELINE.pixels(picture()))


def test_grey_pipelines_get_one_channel():
    grey = Pipeline(size=(8, 8), channels=1)
    assert changed(order.generator(0), grey)["image"].shape == (1, 8, 8)
    assert changed(order.generator(0), PIPELINE, picture().convert("L"))["image"].shape == (
        3,
        24,
        32,
    )


def test_an_image_that_another_augmentation_has_made_is_taken():
    component = ImageTransforms(**PLAIN)
    pixels = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)
    new = Transform(component, PIPELINE)({"image": pixels}, order.generator(0))["image"]
    assert torch.equal(new, pixels)


def test_steps_may_hold_steps_and_names_of_choices():
    step = make_step(
        {
            "name": "RandomApply",
            "p": 1.0,
            "transforms": [
                {"name": "AutoAugment", "policy": "cifar10", "interpolation": "bilinear"},
                {"name": "RandomRotation", "degrees": 10, "interpolation": "bilinear"},
            ],
        }
    )
    assert step(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": (0.0, 1.0)}, r"scale = \[0, 1\]: allowed are two shares"),
        ({"scale": (0.9, 0.5)}, "the smaller one first"),
        ({"ratio": (2.0, 1.0)}, r"ratio = \[2.0, 1.0\]"),
        ({"steps": ({"name": "ColorJiter"},)}, "did you mean `ColorJitter`"),
        ({"steps": ({"brightness": 1},)}, "has no name, which is no transform"),
        ({"steps": ({"name": "functional"},)}, "is no transform of torchvision"),
        ({"steps": ({"name": "InterpolationMode"},)}, "is no transform of torchvision"),
        ({"steps": ({"name": "MixUp"},)}, "mixes images of a batch"),
        ({"steps": ({"name": "Normalize", "mean": [0], "std": [1]},)}, "the backbone normalises"),
        ({"steps": ({"name": "ColorJitter", "hue": 3},)}, "cannot be made"),
        ({"steps": ({"name": "ColorJitter", "glow": 3},)}, "cannot be made .*glow"),
        ({"steps": ({"name": "RandomRotation", "degrees": 5, "interpolation": "cubic"},)}, "cubic"),
    ],
)
def test_mistakes_are_found_before_any_data_is_read(options, words):
    with pytest.raises(RecipeError, match=words) as caught:
        ImageTransforms(**options).check()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_step_that_makes_something_else_is_named():
    with pytest.raises(RecipeError, match=r"steps \(ToPILImage\) make Image of an image"):
        changed(order.generator(0), flip=0.0, steps=({"name": "ToPILImage"},))


def test_splits_that_are_evaluated_stay_as_they_are():
    run = SimpleNamespace(backbone=SimpleNamespace(pipeline=PIPELINE))
    splits = {
        name: SimpleNamespace(transforms=[]) for name in ("train", "old", "validation", "test")
    }
    for name, split in splits.items():
        ImageTransforms().sft_build_data(run, name, split)
    assert [name for name, split in splits.items() if split.transforms] == ["train", "old"]
    with pytest.raises(RecipeError, match="choose a backbone of images"):
        ImageTransforms().sft_build_data(
            SimpleNamespace(backbone=object()), "train", splits["train"]
        )


RECIPE = """
[task]
use = "image-classification"
[data]
use = "tiny/pictures"
validation = 8
test = 8
[backbone]
use = "torchvision"
name = "shufflenet_v2_x0_5"
weights = "none"
img_size = 32
[[augmentation]]
use = "image-transforms"
flip = 0.5
steps = [{ name = "ColorJitter", brightness = 0.3 }]
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
steps = 4
"""


def test_a_run_sees_the_same_images_however_it_is_cut(tmp_path):
    """Workers, micro-batches and a resume change nothing of what an image becomes."""
    from sft_engine import Interrupted

    whole = run_recipe(tmp_path / "whole", RECIPE)
    fetched = run_recipe(tmp_path / "workers", RECIPE, ["train.workers=1"])
    assert fetched.fingerprint == whole.fingerprint
    with pytest.raises(Interrupted):
        run_recipe(tmp_path / "parted", RECIPE, stop_after=2)
    assert run_recipe(tmp_path / "parted", RECIPE, resume=True).fingerprint == whole.fingerprint
    other = run_recipe(tmp_path / "other", RECIPE, ["seeds.noise=7"])
    assert other.fingerprint != whole.fingerprint


def test_it_is_off_from_an_epoch_on(tmp_path):
    two = ["train.epochs=2"]
    recipe = RECIPE.replace("steps = 4\n", "")
    bare = recipe[: recipe.index("[[augmentation]]")] + recipe[recipe.index("[train]") :]
    without = run_recipe(tmp_path / "without", bare, two)
    until = {
        share: run_recipe(
            tmp_path / f"until{share}", recipe.replace("flip =", f"until = {share}\nflip ="), two
        ).fingerprint
        for share in (0.0, 0.5, 0.6, 1.0)
    }
    assert until[0.0] == without.fingerprint
    assert len({until[0.0], until[0.5], until[1.0]}) == 3
    assert until[0.6] == until[1.0]  # the second epoch begins before it


def test_what_is_off_leaves_a_row_as_it_is():
    component = ImageTransforms(until=0.5)
    run = SimpleNamespace(clock=SimpleNamespace(step=6, window=0, total_steps=12))
    component.sft_epoch_start(run)
    given = row()
    assert Transform(component, PIPELINE)(given, order.generator(0)) is given
