"""Changes of pictures: what a hand computes on small ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from sft_engine import order
from sft_probes.pictures import (
    GREY,
    Occlusion,
    Rotation,
    Translation,
    coarser,
    occluded,
    recompressed,
    rotated,
    translated,
)


@pytest.fixture
def image():
    return Image.fromarray(order.generator(0).integers(1, 256, (20, 20, 3), dtype=np.uint8))


def test_a_quarter_turn_is_that_of_the_array(image) -> None:
    pixels = np.asarray(image)
    assert (np.asarray(rotated(image, 0)) == pixels).all()
    assert (np.asarray(rotated(image, 90)) == np.rot90(pixels)).all()


def test_what_comes_in_is_black(image) -> None:
    pixels = np.asarray(image)
    moved = np.asarray(translated(image, 0.1, -0.25))
    assert (moved[:15, 2:] == pixels[5:, :18]).all()
    assert not moved[:, :2].any()
    assert not moved[15:].any()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (1, 1), (0.3, 0.7)])
def test_a_share_of_the_area_is_grey_and_a_larger_one_hides_more_there(
    image, mode, right, down
) -> None:
    image = image.convert(mode)
    pixels = np.asarray(image)
    hidden = []
    for share in (0, 0.04, 0.25, 1):
        found = np.asarray(occluded(image, share, right, down))
        assert (found == GREY).reshape(20, 20, -1).all(axis=2).sum() >= share * 400
        hidden.append(found != pixels)
        changed = hidden[-1].reshape(20, 20, -1).any(axis=2).sum()
        assert changed <= share * 400
    for less, more in itertools.pairwise(hidden):
        assert not (less & ~more).any()


def test_detail_goes_with_the_resolution(image) -> None:
    one_colour = Image.new("RGB", (20, 30), (10, 200, 30))
    assert coarser(one_colour, 7).tobytes() == one_colour.tobytes()
    assert np.asarray(coarser(image, 100)).std(axis=(0, 1)).max() == 0
    spread = [np.asarray(coarser(image, each)).std() for each in (1, 2, 4)]
    assert spread[0] == np.asarray(image).std()
    assert spread[0] > spread[1] > spread[2]


def test_low_quality_is_further_off(image) -> None:
    pixels = np.asarray(image, dtype=float)
    off = [
        np.abs(np.asarray(recompressed(image, q), dtype=float) - pixels).mean()
        for q in (100, 50, 5)
    ]
    assert off[0] < off[1] < off[2]
    assert recompressed(image.convert("L"), 20).mode == "L"


@pytest.mark.parametrize("probe", [Rotation(), Translation(), Occlusion()])
def test_draws_decide_where_not_how_much(probe, image) -> None:
    def altered(seed):
        return probe.alter(image, probe.severities[-1], order.generator(seed)).tobytes()

    assert altered(1) == altered(1)
    assert len({altered(seed) for seed in range(8)}) > 1
