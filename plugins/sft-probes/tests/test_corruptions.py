"""Corruptions are drawn from seed, example, kind and severity alone; mCE is what the paper says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sft_engine import RecipeError, order
from sft_probes.corruption_error import (
    EVERY,
    LEVELS,
    USUAL,
    Errors,
    alexnet,
    corruption_errors,
    in_percent,
    read_reference,
    relative_corruption_errors,
    require_same_setting,
)
from sft_probes.corruptions import Corruptions, corrupted, cropped

DRAWN = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
}
"""Those of which two seeds make two pictures."""


@pytest.fixture(scope="module")
def image():
    grid = np.indices((40, 48)).sum(axis=0) * 2
    noise = order.generator(5).integers(0, 60, (40, 48, 3))
    return Image.fromarray((grid[..., None] + noise).astype(np.uint8))


@pytest.mark.parametrize("name", EVERY)
def test_every_corruption_depends_on_its_seed_alone(image, name) -> None:
    np.random.seed(1)
    one = corrupted(image, name, 3, 7)
    after = np.random.random()
    np.random.seed(2)
    assert corrupted(image, name, 3, 7).tobytes() == one.tobytes()
    np.random.seed(1)
    assert np.random.random() == after  # the caller's stream is as it was
    assert one.size == image.size
    assert one.tobytes() != image.tobytes()
    assert (corrupted(image, name, 3, 8).tobytes() != one.tobytes()) == (name in DRAWN)


def test_the_worst_is_further_off_than_the_least(image) -> None:
    def off(level):
        found = corrupted(image, "gaussian_noise", level, 0)
        return np.abs(np.asarray(found, dtype=float) - np.asarray(image, dtype=float)).mean()

    assert off(5) > off(3) > off(1)


def test_pictures_are_cut_as_in_the_benchmark_or_left_as_they_are(image) -> None:
    probe = Corruptions(corruptions=("contrast",))
    large = image.resize((400, 300))
    found = probe.alter(large, "contrast-2", order.generator(0))
    assert isinstance(found, torch.Tensor)
    assert found.shape == (3, 224, 224)
    middle = corrupted(cropped(large, 224), "contrast", 2, 0)
    assert (found.permute(1, 2, 0).numpy() == np.asarray(middle)).all()
    assert probe.alter(image, "contrast-2", order.generator(0)).size == image.size
    assert probe.alter(image.resize((20, 10)), "contrast-2", order.generator(0)).size == (64, 32)
    assert probe.alter(image.convert("L"), "contrast-2", order.generator(0)).mode == "RGB"
    whole = Corruptions(corruptions=("contrast",), size=0)
    assert whole.alter(large, "contrast-2", order.generator(0)).size == large.size


def test_the_draws_are_of_corruption_severity_and_example(image) -> None:
    probe = Corruptions()

    def altered(kind, example):
        return probe.alter(image, kind, order.generator(0, example)).tobytes()

    assert altered("snow-2", 1) == altered("snow-2", 1)
    assert altered("snow-2", 1) != altered("snow-2", 2)
    assert len(probe.severities) == 75


# --- figures --------------------------------------------------------------------------------------

MODEL = Errors(0.1, {"fog": [0.2, 0.4], "snow": [0.3, 0.3], "spatter": [0.9, 0.9]}, "mine")
OTHER = Errors(0.2, {"fog": [0.4, 0.4], "snow": [0.5, 0.5], "spatter": [0.3, 0.3]}, "theirs")


def test_corruption_errors_by_hand() -> None:
    plain = corruption_errors(MODEL, OTHER)
    assert plain == pytest.approx({"fog": 0.75, "snow": 0.6, "spatter": 3.0})
    assert in_percent(plain) == pytest.approx(67.5)  # spatter is for validation
    relative = relative_corruption_errors(MODEL, OTHER)
    assert relative["fog"] == pytest.approx((0.1 + 0.3) / (0.2 + 0.2))
    assert relative["snow"] == pytest.approx((0.2 + 0.2) / (0.3 + 0.3))
    assert in_percent(relative) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert MODEL.mean == pytest.approx((0.3 + 0.3 + 0.9) / 3)


@pytest.mark.parametrize("model", [MODEL, OTHER, alexnet(LEVELS)], ids=["one", "other", "alexnet"])
def test_the_reference_itself_has_100(model) -> None:
    assert in_percent(corruption_errors(model, model)) == pytest.approx(100)
    assert in_percent(relative_corruption_errors(model, model)) == pytest.approx(100)


def test_alexnets_published_means() -> None:
    reference = alexnet(LEVELS)
    assert list(reference.corrupted) == list(USUAL)
    assert reference.corrupted["gaussian_noise"] == [0.886428] * 5
    assert reference.corrupted["brightness"] == [0.564592] * 5
    assert reference.corrupted["jpeg_compression"] == [0.606500] * 5
    with pytest.raises(RecipeError, match="severities 1 to 5 together, found"):
        alexnet((1, 2))


RESNET_50 = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
"""Corruption errors of Hendrycks and Dietterich (2019), table 1, in the order of the benchmark."""


def test_figures_of_the_paper_follow_from_its_corruption_errors() -> None:
    """Table 1 has error 23.9 and mCE 76.7, figure 3 a relative mCE of 105.0; its entries are rounded."""
    reference = alexnet(LEVELS)
    errors = {
        name: [share / 100 * reference.corrupted[name][0]] * 5
        for name, share in zip(USUAL, RESNET_50, strict=True)
    }
    model = Errors(0.239, errors)
    assert in_percent(corruption_errors(model, reference)) == pytest.approx(76.7, abs=0.5)
    assert in_percent(relative_corruption_errors(model, reference)) == pytest.approx(105, abs=1)


def test_without_errors_of_the_reference_there_is_no_ratio() -> None:
    perfect = Errors(0.0, {"fog": [0.0, 0.0]})
    assert math.isnan(corruption_errors(MODEL, perfect)["fog"])
    assert set(corruption_errors(MODEL, perfect)) == {"fog"}


def test_a_reference_is_a_folder_with_the_same_probe(tmp_path) -> None:
    with pytest.raises(RecipeError, match='allowed are "alexnet"'):
        read_reference(str(tmp_path))
    setting = {"split": "test", "examples": 9, "seed": 0, "size": 224, "severities": [1, 2]}
    facts = {"clean_error": 0.2, "errors": {"fog": [0.4, 0.4]}, "setting": setting}
    (tmp_path / "report.json").write_text(json.dumps({"probes": {"typos": {}}}))
    (tmp_path / "probes.json").write_text(json.dumps({"probes": {"corruptions": facts}}))
    found = read_reference(str(tmp_path))
    assert (found.clean, found.corrupted) == (0.2, {"fog": [0.4, 0.4]})
    require_same_setting(found, setting)
    with pytest.raises(RecipeError, match="measured with seed = 0, this probe has 1"):
        require_same_setting(found, {**setting, "seed": 1})


def test_the_library_is_asked_for_by_name(monkeypatch) -> None:
    monkeypatch.setattr("sft_probes.corruptions.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'sft-probes\[corruptions\]'"):
        Corruptions().check()
