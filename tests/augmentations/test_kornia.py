"""kornia's transforms on batches: what they are given, where they draw from, what is refused."""

from __future__ import annotations

import subprocess
import sys

import kornia.augmentation
import pytest
import torch
from observers import COMPONENTS, RECIPES

from sft_augmentations.libraries import UNFIT, kornia_names
from sft_augmentations.on_device import Kornia, seeded
from sft_engine import RecipeError
from sft_engine.images import Pipeline
from sft_engine.testing.runs import plan_recipe, run_recipe

FLIP = {"name": "RandomHorizontalFlip", "p": 1.0}


def table(transforms, more=""):
    return f'[[augmentation]]\nuse = "kornia"\ntransforms = {transforms}\n{more}'


def applied(images, *transforms, pipeline=None, seed=0):
    component = Kornia(transforms)
    component.check()
    with seeded(images.device, seed):
        return component.changed(images, pipeline or Pipeline())


def normalised(seed=0, n=4):
    pixels = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return pixels, Pipeline().normalize(pixels.mul(255))


def test_a_flip_is_the_mirror_image():
    _, images = normalised()
    assert torch.allclose(applied(images, FLIP), images.flip(3), atol=1e-6)


def test_values_are_those_of_the_picture():
    """Solarize and invert have closed forms on values from 0 to 1, and on no others."""
    pixels, images = normalised()
    inverted = applied(images, {"name": "RandomInvert", "p": 1.0})
    assert torch.allclose(inverted, Pipeline().normalize((1 - pixels).mul(255)), atol=1e-5)
    bright = {"name": "RandomBrightness", "brightness": [1.2, 1.2], "p": 1.0}
    expected = Pipeline().normalize((pixels + 0.2).clamp(0, 1).mul(255))
    assert torch.allclose(applied(images, bright), expected, atol=1e-5)


def test_steps_follow_each_other():
    _, images = normalised()
    invert = {"name": "RandomInvert", "p": 1.0}
    one = applied(applied(images, FLIP), invert)
    assert torch.allclose(applied(images, FLIP, invert), one, atol=1e-5)


def test_draws_are_the_seeds_alone():
    _, images = normalised(n=32)
    some = {"name": "RandomHorizontalFlip", "p": 0.5}
    before = torch.get_rng_state()
    first = applied(images, some, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(applied(images, some, seed=3), first)
    assert not torch.equal(applied(images, some, seed=4), first)


def test_the_memory_format_stays():
    _, images = normalised()
    innermost = images.contiguous(memory_format=torch.channels_last)
    found = applied(innermost, FLIP)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, applied(images, FLIP))


def test_one_channel():
    grey = Pipeline(channels=1)
    images = grey.normalize(torch.rand(2, 1, 8, 8).mul(255))
    assert torch.allclose(applied(images, FLIP, pipeline=grey), images.flip(3), atol=1e-6)


def test_what_changes_the_size_is_refused():
    _, images = normalised()
    with pytest.raises(RecipeError, match=r"makes \(4, 3, 5, 5\) of \(4, 3, 8, 8\)"):
        applied(images, {"name": "CenterCrop", "size": 5})


def test_the_names_are_those_of_kornia():
    """Read from its source, and asked of itself."""
    base = kornia.augmentation.AugmentationBase2D
    public = {name: getattr(kornia.augmentation, name) for name in kornia.augmentation.__all__}
    found = {
        name
        for name, each in public.items()
        if isinstance(each, type) and issubclass(each, base) and "Base" not in name
    }
    assert found - set(UNFIT) <= kornia_names()
    assert kornia_names() <= set(public)


def test_check_names_what_there_is_without_importing_it():
    recipe = RECIPES["picture"].replace("tiny/", "x/") + table(
        '[{name = "RandomHorizontalFlop"}, {name = "RandomMixUpV2"}, {p = 0.5}]'
    )
    code = (
        "import sys\n"
        "from sft_engine.recipe import parse_recipe\n"
        "from sft_augmentations.recipes import problems\n"
        f"for each in problems(parse_recipe({recipe!r}, 'r.toml')): print(each)\n"
        "print({'kornia', 'torch', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout
    assert '"RandomHorizontalFlop" is no transform of images in kornia' in said
    assert "did you mean `RandomHorizontalFlip`?" in said
    assert "it mixes labels: use `mixup`" in said
    assert "has no name" in said
    assert said.endswith("set()\n")


def test_a_plan_with_a_wrong_name_is_refused():
    with pytest.raises(
        RecipeError, match=r"augmentation\[0\]\.transforms.*RandomFlip.* is no tran"
    ):
        plan_recipe(RECIPES["picture"] + table('[{name = "RandomFlip"}]'))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("sft_augmentations.libraries.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs kornia.*sft-augmentations\[kornia\]"):
        plan_recipe(RECIPES["picture"] + table('[{name = "RandomInvert"}]'))


def test_wrong_arguments_are_refused_before_data_are_read(tmp_path):
    wrong = table('[{name = "RandomGamma", gama = 2}]')
    with pytest.raises(RecipeError, match=r"RandomGamma.*cannot be made.*gama"):
        run_recipe(tmp_path, RECIPES["picture"] + wrong)


def test_texts_are_refused(tmp_path):
    with pytest.raises(RecipeError, match='use = "kornia" changes images'):
        run_recipe(tmp_path, RECIPES["text"] + table('[{name = "RandomInvert"}]'), (), COMPONENTS)
