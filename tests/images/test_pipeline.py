from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from pictures import noise
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision import models

from sft_engine.images import Pipeline

SIZES = [(300, 400), (400, 300), (30, 500), (224, 224), (100, 77)]


def picture(height, width):
    draws = np.random.default_rng(height * width)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pipeline_of(config):
    """What a data_config of timm says."""
    return Pipeline(
        size=config["input_size"][1:],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet18.a1_in1k",
        "tf_efficientnet_lite0.in1k",
        "vit_tiny_patch16_224",
        "mobilenetv3_small_050",
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_evaluation_transform_of_timm(name, size):
    model = timm.create_model(name, pretrained=False)
    config = resolve_model_data_config(model)
    theirs = create_transform(**config, is_training=False)
    image = picture(*size)
    torch.testing.assert_close(pipeline_of(config)(image), theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("target", [(96, 96), (64, 48)])
def test_equals_timm_in_every_crop_mode(crop_mode, crop_pct, interpolation, target):
    options = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    options |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
    theirs = create_transform((3, *target), is_training=False, **options)
    ours = Pipeline(size=target, **options)
    for size in SIZES:
        image = picture(*size)
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        models.ResNet50_Weights.IMAGENET1K_V1,
        models.ResNet50_Weights.IMAGENET1K_V2,
        models.EfficientNet_B0_Weights.IMAGENET1K_V1,
        models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
        models.Swin_T_Weights.IMAGENET1K_V1,
    ],
    ids=str,
)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_transforms_of_torchvisions_weights(weights, size):
    theirs = weights.transforms()
    ours = Pipeline(
        size=(theirs.crop_size[0],) * 2,
        resize=theirs.resize_size[0],
        interpolation=theirs.interpolation.value,
        mean=tuple(theirs.mean),
        std=tuple(theirs.std),
    )
    image = picture(*size)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


def test_grey_images_get_three_channels_and_colour_becomes_grey():
    grey = noise().convert("L")
    three = Pipeline((16, 16), mean=(0.0,), std=(1.0,))(grey)
    assert three.shape == (3, 16, 16)
    assert torch.equal(three[0], three[2])
    one = Pipeline((16, 16), mean=(0.0, 0.3, 0.6), std=(1.0,), channels=1)
    assert one.mean == pytest.approx((0.3,))
    assert torch.allclose(one(noise())[0], one(grey)[0])
    assert torch.allclose(one(noise())[0], three[0] - 0.3, atol=1e-6)


def test_other_modes_are_decoded_first():
    image = noise().convert("RGBA")
    image.putalpha(0)
    white = Pipeline((8, 8), mean=(0.5,), std=(0.5,))(image)
    assert torch.equal(white, torch.ones(3, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tensor_is_only_normalised_if_its_size_fits(channels):
    pipeline = Pipeline((6, 9), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8)
    mean, std = torch.tensor(pipeline.mean), torch.tensor(pipeline.std)
    expected = (pixels.expand(3, 6, 9) / 255 - mean[:, None, None]) / std[:, None, None]
    before = pixels.clone()
    assert torch.equal(pipeline(pixels), expected)
    assert torch.equal(pixels, before)


def test_a_tensor_of_another_size_is_resized():
    pixels = torch.full((3, 30, 20), 51, dtype=torch.uint8)
    found = Pipeline((6, 9), mean=(0.0,), std=(1.0,))(pixels)
    assert found.shape == (3, 6, 9)
    torch.testing.assert_close(found, torch.full((3, 6, 9), 0.2))
    assert Pipeline((6, 9), channels=1)(pixels).shape == (1, 6, 9)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(())]
)
def test_other_tensors_are_refused(tensor):
    with pytest.raises(ValueError, match="allowed: uint8"):
        Pipeline()(tensor)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 2},
        {"size": (0, 4)},
        {"crop_pct": 0.0},
        {"std": (0.0,)},
        {"mean": (0.1, 0.2)},
        {"interpolation": "cubic"},
    ],
)
def test_settings_that_no_image_can_be_given(settings):
    with pytest.raises(ValueError, match=r"."):
        Pipeline(**settings)


def test_it_can_be_compared_and_sent_to_another_process():
    pipeline = Pipeline((8, 8), mean=(0.5,))
    pipeline(noise())  # fills what it remembers
    same = copy.deepcopy(pipeline)
    assert same == pipeline
    assert hash(same) == hash(pipeline)
    assert torch.equal(same(noise()), pipeline(noise()))
