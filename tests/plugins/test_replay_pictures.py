"""Replay in whole runs of the timm and torchvision backbones: the same curve, the same resume."""

from __future__ import annotations

import json

import pytest

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
img_size = 32
BACKBONE
[optimizer]
use = "adamw"
lr = 1e-2
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
epochs = 2
log_every = 1
[freezing]
use = "frozen"
"""
BACKBONES = {
    "timm": 'use = "timm"\nname = "resnet10t"\npretrained = false\ndrop_rate = 0.2',
    "timm-vit": 'use = "timm"\nname = "test_vit"\npretrained = false',
    "timm-efficientnet": 'use = "timm"\nname = "efficientnet_lite0"\npretrained = false',
    "torchvision": 'use = "torchvision"\nname = "mobilenet_v3_small"\nweights = "none"',
}


def run(folder, name, *overrides, **options):
    return run_recipe(folder, RECIPE.replace("BACKBONE", BACKBONES[name]), overrides, **options)


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


SLOW = [pytest.param("timm-efficientnet", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", ["timm", "timm-vit", "torchvision", *SLOW])
def test_a_frozen_backbone_trains_the_same(tmp_path, name):
    on = run(tmp_path / "on", name, "train.replay=true")
    off = run(tmp_path / "off", name, "train.replay=false")
    (line,) = [r["message"] for r in records(tmp_path / "on", "notice")]
    assert line.startswith("replay is on: kept of each example: ")
    ours, theirs = ([r["loss"] for r in records(tmp_path / n, "train")] for n in ("on", "off"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[:3] == theirs[:3]  # each example is met for the first time
    assert on.metrics["accuracy"] == off.metrics["accuracy"]


@pytest.mark.parametrize(
    "name", ["timm", pytest.param("torchvision", marks=pytest.mark.slow), *SLOW]
)
def test_resume_is_bit_equal(tmp_path, name):
    whole = run(tmp_path / "whole", name, "train.replay=true")
    with pytest.raises(Interrupted):
        run(tmp_path / "parted", name, "train.replay=true", stop_after=4)
    again = run(tmp_path / "parted", name, "train.replay=true", resume=True)
    assert again.fingerprint == whole.fingerprint
