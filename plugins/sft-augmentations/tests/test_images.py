"""Images: torchvision's results, drawn from the generator that the engine gives and from nothing else."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from sft_augmentations.erasing import RandomErasing, erase, erasing_box
from sft_augmentations.images import AugMix, Colour, RandAugment, TrivialAugment
from sft_augmentations.pictures import torch_draws

SOURCE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(SOURCE)
COMPONENTS = [
    (RandAugment(), v2.RandAugment()),
    (RandAugment(3, 15, interpolation="bilinear"), v2.RandAugment(3, 15, interpolation="bilinear")),
    (TrivialAugment(), v2.TrivialAugmentWide()),
    (AugMix(), v2.AugMix()),
    (AugMix(1, width=2, depth=2, all_operations=False), v2.AugMix(1, 2, 2, all_ops=False)),
    (Colour(hue=0.1), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
]
ALL = [*(component for component, _ in COMPONENTS), RandomErasing()]
NAMES = [type(component).__name__ for component in ALL]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def array(picture: Image.Image | torch.Tensor) -> np.ndarray:
    return picture.numpy() if isinstance(picture, torch.Tensor) else np.asarray(picture)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("component", "transform"), COMPONENTS, ids=NAMES[:-1])
def test_it_is_torchvisions_transform(component, transform, seed: int) -> None:
    with torch_draws(generator(seed)):
        expected = transform(PICTURE)
    assert (array(component.alter(PICTURE, generator(seed))) == array(expected)).all()


@pytest.mark.parametrize("component", ALL, ids=NAMES)
def test_the_generator_alone_decides(component) -> None:
    first = array(component.alter(PICTURE, generator(5)))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert (array(component.alter(PICTURE, generator(5))) == first).all()
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after
    others = [array(component.alter(PICTURE, generator(seed))) for seed in range(6, 12)]
    assert any((other != first).any() for other in others)


@pytest.mark.parametrize("component", ALL, ids=NAMES)
@pytest.mark.parametrize("kind", ["rgb", "grey", "tensor", "grey tensor"])
def test_what_comes_out_is_of_the_kind_that_went_in(component, kind: str) -> None:
    picture = PICTURE.convert("L") if "grey" in kind else PICTURE
    given = functional.pil_to_tensor(picture) if "tensor" in kind else picture
    before = array(given).copy()
    for seed in range(8):
        altered = component.alter(given, generator(seed))
        assert type(altered) is type(given)
        assert array(altered).shape == array(given).shape
        assert array(altered).dtype == np.uint8
    assert (array(given) == before).all()


def test_a_row_may_hold_the_bytes_of_a_file() -> None:
    file = io.BytesIO()
    PICTURE.save(file, format="PNG")
    for value in (file.getvalue(), {"bytes": file.getvalue(), "path": None}, PICTURE):
        row = Colour().change({"image": value, "label": 1}, generator(2))
        assert (array(row["image"]) == array(Colour().alter(PICTURE, generator(2)))).all()
        assert row["label"] == 1


# --- erasing ---------------------------------------------------------------------------------------


def test_boxes_have_area_and_aspect_as_asked_for() -> None:
    draws = generator()
    boxes = [erasing_box((1000, 800), (0.1, 0.2), (0.5, 2.0), draws) for _ in range(2000)]
    found = np.array([box for box in boxes if box])
    assert len(found) == 2000
    area = found[:, 2] * found[:, 3] / 800_000
    aspect = np.log(found[:, 2] / found[:, 3])
    assert area.min() > 0.099
    assert area.max() < 0.201
    assert abs(area.mean() - 0.15) < 4 * 0.1 / math.sqrt(12 * 2000)
    assert abs(aspect).max() < math.log(2) + 0.01
    assert abs(aspect.mean()) < 4 * 2 * math.log(2) / math.sqrt(12 * 2000)
    assert (found[:, 0] + found[:, 2] <= 1000).all()
    assert (found[:, 1] + found[:, 3] <= 800).all()


def test_what_does_not_fit_is_not_erased() -> None:
    assert erasing_box((10, 10), (1.0, 1.0), (1.0, 1.0), generator()) is None
    component = RandomErasing(area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert component.alter(PICTURE, generator()) is PICTURE


@pytest.mark.parametrize("fill", ["noise", "mean", "black"])
def test_the_box_is_covered_and_nothing_else(fill: str) -> None:
    pixels = torch.from_numpy(SOURCE).permute(2, 0, 1).contiguous()
    erased = erase(pixels, (3, 5, 10, 12), fill, generator())
    cover = erased[:, 3:13, 5:17]
    assert torch.equal(erased, functional.erase(pixels, 3, 5, 10, 12, cover))
    if fill == "noise":
        assert 80 < cover.double().mean() < 175
        assert cover.double().std() > 50
    else:
        values = cover.flatten(1).unique(dim=1)
        mean = pixels.double().mean(dim=(1, 2)).round().to(torch.uint8)
        assert torch.equal(values.squeeze(1), mean if fill == "mean" else mean * 0)
