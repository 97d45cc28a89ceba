"""Real short runs: frozen statistics, memory format, resume, export to evaluation."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from sft_engine import Interrupted
from sft_engine.testing.runs import run_recipe

RECIPE = """
[task]
use = "image-classification"
[data]
use = "tiny/pictures"
validation = 8
test = 8
[backbone]
use = "timm"
name = "resnet10t"
pretrained = false
img_size = 32
[optimizer]
use = "adamw"
lr = 1e-3
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
steps = 3
"""
FROZEN = """
[freezing]
use = "frozen"
"""


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_leaves_a_model_of_timm(tmp_path):
    run_recipe(tmp_path / "run", RECIPE)
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert model.num_classes == 2
    assert model.pretrained_cfg["label_names"] == ["left", "right"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    run_recipe(tmp_path / "start", RECIPE, ["train.steps=1", "optimizer.lr=1e-30"])
    source = f'backbone.name="{tmp_path / "start" / "model"}"'
    run_recipe(tmp_path / "run", RECIPE + FROZEN, [source, "backbone.pretrained=true"])
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}
    assert any("running_mean" in name for name in before)


def test_batch_norm_that_trains_moves_its_statistics(tmp_path):
    run_recipe(tmp_path / "start", RECIPE, ["train.steps=1", "optimizer.lr=1e-30"])
    source = f'backbone.name="{tmp_path / "start" / "model"}"'
    frozen = FROZEN + 'patterns = ["stem", "layer1", "layer2"]\n'
    run_recipe(tmp_path / "run", RECIPE + frozen, [source, "backbone.pretrained=true"])
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = {name for name in before if name.startswith(("conv1", "bn1", "layer1", "layer2"))}
    assert not moved & still
    assert "layer4.0.bn1.running_mean" in moved


def test_the_first_convolution_gets_channels_last_images_in_a_run(tmp_path, monkeypatch):
    seen = []
    forward = torch.nn.Conv2d.forward

    def noted(self, images):
        if images.shape[1] == 3:
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return forward(self, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", noted)
    run_recipe(tmp_path / "run", RECIPE)
    # The probe of the layer groups has one image, which any format fits.
    assert len(seen) > 4
    assert all(seen[1:])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_ends_as_the_whole_one_does(tmp_path, optimizer):
    """The moments come back in the memory format of the weights, as fused optimizers need them."""
    changes = ["train.steps=6", f'optimizer.use="{optimizer}"', "optimizer.lr=1e-2"]
    whole = run_recipe(tmp_path / "whole", RECIPE, changes)
    with pytest.raises(Interrupted):
        run_recipe(tmp_path / "parted", RECIPE, changes, stop_after=3)
    resumed = run_recipe(tmp_path / "parted", RECIPE, changes, resume=True)
    assert resumed.fingerprint == whole.fingerprint
