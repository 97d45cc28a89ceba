"""Layer groups of many architectures: `python THIS FILE [NAME ...]` prints them."""

from __future__ import annotations

import sys

import pytest
import torch

from sft_engine import Head
from sft_engine.testing.layer_groups import check_layer_groups, in_one_line
from sft_torchvision.backbone import Torchvision

ARCHITECTURES = {
    "alexnet": "stem(2) features.3,6,8,10(8) classifier(4) head(2)",
    "convnext_tiny": "stem(4) features.1-7(176) head(2)",
    "densenet121": "stem(3) features.denseblock1(36) features.transition1(3) features.denseblock2(72) features.transition2(3) features.denseblock3(144) features.transition3(3) features.denseblock4(98) head(2)",
    "efficientnet_b0": "stem(3) features.1-8(208) head(2)",
    "efficientnet_v2_s": "stem(3) features.1-7(447) head(2)",
    "googlenet": "stem(3) conv2-3(6) inception3a(18) inception3b(18) inception4a(18) inception4b(18) inception4c(18) inception4d(18) inception4e(18) inception5a(18) inception5b(18) head(2)",
    "inception_v3": "stem(3) Conv2d_2a_3x3(3) Conv2d_2b_3x3(3) Conv2d_3b_1x1(3) Conv2d_4a_3x3(3) Mixed_5b(21) Mixed_5c(21) Mixed_5d(21) Mixed_6a(12) Mixed_6b(30) Mixed_6c(30) Mixed_6d(30) Mixed_6e(30) Mixed_7a(18) Mixed_7b(27) Mixed_7c(27) head(2)",
    "maxvit_t": "stem(5) blocks.0-3(448) classifier(4) head(1)",
    "mnasnet0_5": "stem(3) layers.3,6,8,9,10,11,12,13,14(153) head(2)",
    "mobilenet_v2": "stem(3) features.1-18(153) head(2)",
    "mobilenet_v3_large": "stem(3) features.1-16(167) classifier(2) head(2)",
    "mobilenet_v3_small": "stem(3) features.1-12(135) classifier(2) head(2)",
    "regnet_x_400mf": "stem(3) trunk_output.block1-4(210) head(2)",
    "regnet_y_400mf": "stem(3) trunk_output.block1-4(220) head(2)",
    "resnet18": "stem(3) layer1-4(57) head(2)",
    "resnet50": "stem(3) layer1-4(156) head(2)",
    "resnet152": "stem(3) layer1-4(462) head(2)",
    "resnext50_32x4d": "stem(3) layer1-4(156) head(2)",
    "shufflenet_v2_x1_0": "stem(3) stage2-4(162) conv5(3) head(2)",
    "squeezenet1_1": "stem(2) features.3,4,6,7,9,10,11,12(48) head(2)",
    "swin_t": "stem(4) features.1-7(167) head(2)",
    "swin_s": "stem(4) features.1-7(323) head(2)",
    "swin_v2_t": "stem(4) features.1-7(203) head(2)",
    "vgg11": "stem(2) features.3,6,8,11,13,16,18(14) classifier(4) head(2)",
    "vgg16_bn": "stem(4) features.3,7,10,14,17,20,24,27,30,34,37,40(48) classifier(4) head(2)",
    "vit_b_16": "stem(4) encoder.layers.encoder_layer_0-11(146) head(2)",
    "vit_l_32": "stem(4) encoder.layers.encoder_layer_0-23(290) head(2)",
    "wide_resnet50_2": "stem(3) layer1-4(156) head(2)",
}


def built(name):
    """Return the backbone and its model on the meta device: shapes without numbers, in no time."""
    backbone = Torchvision(name=name, weights="none")
    backbone.open(lambda name: name)
    try:
        with torch.device("meta"):
            return backbone, backbone.network(Head("classification", 3, ("a", "b", "c")))
    except (NotImplementedError, RuntimeError):  # looks at its own numbers while it is built
        return backbone, backbone.network(Head("classification", 3, ("a", "b", "c"))).to("meta")


def test_the_list_is_long_enough():
    assert len(ARCHITECTURES) >= 25


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_whole_and_in_forward_order(name):
    backbone, model = built(name)
    groups = backbone.layer_groups(model)
    check_layer_groups(model, groups, backbone._probe)
    assert in_one_line(groups) == ARCHITECTURES[name]


if __name__ == "__main__":
    for name in sys.argv[1:] or ARCHITECTURES:
        backbone, model = built(name)
        print(f'    "{name}": "{in_one_line(backbone.layer_groups(model))}",')
