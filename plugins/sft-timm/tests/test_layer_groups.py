"""Layer groups of many architectures: `python THIS FILE [NAME ...]` prints them."""

from __future__ import annotations

import sys

import pytest
import torch

from sft_engine import Head
from sft_engine.testing.layer_groups import check_layer_groups, in_one_line
from sft_timm.backbone import Timm

ARCHITECTURES = {
    "beit_base_patch16_224": "stem(3) blocks.0-11(194) head(2)",
    "cait_xxs24_224": "stem(3) blocks.0-23(433) blocks_token_only(38) head(2)",
    "coatnet_nano_rw_224": "stem(4) stages.0-3(223) head(2)",
    "convmixer_768_32": "stem(4) blocks.0-31(256) head(2)",
    "convnext_tiny": "stem(4) stages.0-3(176) head(2)",
    "convnextv2_atto": "stem(4) stages.0-3(134) head(2)",
    "deit_tiny_distilled_patch16_224": "stem(5) blocks.0-11(146) head(4)",
    "densenet121": "stem(3) features.denseblock1-4(359) head(2)",
    "dla34": "stem(3) level0-5(108) head(2)",
    "efficientnet_b0": "stem(3) blocks.0-6(208) head(2)",
    "eva02_tiny_patch14_224": "stem(4) blocks.0-11(158) head(2)",
    "ghostnet_050": "stem(3) blocks.0-9(267) head(2)",
    "hrnet_w18_small": "stem(6) layer1(18) stage2-4(189) incre_modules(48) downsamp_modules(12) final_layer(4) head(2)",
    "inception_v4": "stem(9) features.3-21(438) head(2)",
    "mambaout_femto": "stem(8) stages.0-3(156) pre_logits(6) head(2)",
    "maxvit_rmlp_pico_rw_256": "stem(4) stages.0-3(500) head(2)",
    "mixer_s16_224": "stem(2) blocks.0-7(98) head(2)",
    "mobilenetv2_050": "stem(3) blocks.0-6(153) head(2)",
    "mobilenetv3_small_050": "stem(3) blocks.0-5(135) conv_head(2) head(2)",
    "mobilenetv4_conv_small": "stem(3) blocks.0-4(132) conv_head(3) head(2)",
    "mobilevit_xxs": "stem(3) stages.0-4(210) head(2)",
    "nfnet_l0": "stem(12) stages.0-3(207) head(2)",
    "poolformer_s12": "stem(2) stages.0-3(128) head(2)",
    "pvt_v2_b0": "stem(4) stages.0-3(172) head(2)",
    "regnety_002": "stem(3) s1-4(181) head(2)",
    "repvgg_a0": "stem(6) stages.0-3(160) head(2)",
    "rexnet_100": "stem(3) features.0-16(222) head(2)",
    "resnet152": "stem(3) layer1-4(462) head(2)",
    "resnet18": "stem(3) layer1-4(57) head(2)",
    "selecsls42": "stem(3) features.0-5(108) pre_logits(12) head(2)",
    "seresnet50": "stem(3) layer1-4(220) head(2)",
    "swin_tiny_patch4_window7_224": "stem(4) layers.0-3(167) head(2)",
    "swinv2_cr_tiny_224": "stem(4) stages.0-3(215) head(2)",
    "tf_efficientnet_lite0": "stem(3) blocks.0-6(144) head(2)",
    "tiny_vit_5m_224": "stem(6) stages.0-3(207) head(2)",
    "vgg11": "stem(2) features.3,6,8,11,13,16,18(14) pre_logits(4) head(2)",
    "vgg16_bn": "stem(4) features.3,7,10,14,17,20,24,27,30,34,37,40(48) pre_logits(4) head(2)",
    "vit_base_patch32_clip_224": "stem(5) blocks.0-11(146) head(2)",
    "vit_medium_patch16_gap_240": "stem(3) blocks.0-11(158) head(2)",
    "vit_tiny_patch16_224": "stem(4) blocks.0-11(146) head(2)",
    "volo_d1_224": "stem(11) network.0-4(210) post_network(26) head(4)",
    "xcit_nano_12_p16_224": "stem(12) pos_embed(2) blocks.0-11(289) cls_attn_blocks(38) head(2)",
}

BRANCHED = {"hrnet_w18_small"}
"""Its branches end one by one, while the next part has begun."""


def built(name):
    """Return the backbone and its model on the meta device: shapes without numbers, in no time."""
    backbone = Timm(name=name, pretrained=False)
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
    check_layer_groups(model, groups, backbone._probe, apart=name not in BRANCHED)
    assert in_one_line(groups) == ARCHITECTURES[name]


if __name__ == "__main__":
    for name in sys.argv[1:] or ARCHITECTURES:
        backbone, model = built(name)
        print(f'    "{name}": "{in_one_line(backbone.layer_groups(model))}",')
