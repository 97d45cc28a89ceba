"""Which arithmetic `train.precision = "auto"` means."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sft_engine import devices
from sft_engine.devices import choose_precision
from sft_engine.settings import TrainSettings

PLAIN = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(1, 4, 3))
DEPTHWISE = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize(
    ("bf16", "model", "chosen"),
    [
        (True, None, "bf16"),
        (True, PLAIN, "bf16"),
        (True, DEPTHWISE, "fp32"),
        (False, PLAIN, "fp32"),
    ],
)
def test_auto_is_bf16_where_that_is_faster(monkeypatch, bf16, model, chosen):
    monkeypatch.setattr(devices, "computes_bf16", lambda _: bf16)
    assert choose_precision(TrainSettings(), Accelerator(cpu=True), model).name == chosen


def test_what_the_recipe_says_holds_for_every_model():
    settings = TrainSettings(precision="bf16")
    assert choose_precision(settings, Accelerator(cpu=True), DEPTHWISE).name == "bf16"


def test_depthwise_convolutions_are_computed_in_the_chosen_precision():
    precision = choose_precision(TrainSettings(precision="bf16"), Accelerator(cpu=True), DEPTHWISE)
    with precision.autocast():
        assert DEPTHWISE(torch.ones(1, 4, 8, 8)).dtype is torch.bfloat16
