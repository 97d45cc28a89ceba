"""Models of many families: built, saved, read by this backbone and by timm alone."""

from __future__ import annotations

import pytest
import timm
import torch

from sft_timm.backbone import Timm

SIZES = {
    "convnext_atto": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "densenet121": 32,
    "edgenext_xx_small": 64,
    "efficientnet_b0": 32,
    "eva02_tiny_patch14_224": 28,
    "fbnetc_100": 32,
    "ghostnet_050": 32,
    "levit_128s": 224,
    "mambaout_femto": 32,
    "mobilenetv2_050": 32,
    "mobilenetv3_small_050": 32,
    "mobilenetv4_conv_small": 32,
    "mobilevitv2_050": 64,
    "poolformer_s12": 32,
    "regnetx_002": 32,
    "regnety_002": 32,
    "repvgg_a0": 32,
    "resnet10t": 32,
    "resnet18": 32,
    "swin_tiny_patch4_window7_224": 56,
    "test_byobnet": 32,
    "test_vit": 32,
    "tf_efficientnet_lite0": 32,
    "vit_tiny_patch16_224": 32,
    "xcit_nano_12_p16_224": 32,
}
"""Small ones, with small images."""


def opened(name, folder=None, **options):
    backbone = Timm(name=name, **{"pretrained": False, **options})
    backbone.open(lambda name: name if folder is None else str(folder))
    return backbone


def logits(backbone, model, images):
    with torch.no_grad():
        return backbone.forward(model.eval(), {"image": images})


def test_the_list_is_long_enough():
    assert len(SIZES) >= 25


@pytest.mark.parametrize("name", SIZES)
def test_what_is_saved_is_read_again_bit_for_bit(name, tmp_path, make_task):
    task = make_task()
    size = {"img_size": SIZES[name], "channels_last": False}
    backbone = opened(name, **size)
    torch.manual_seed(0)
    model = backbone.build(task)
    images = torch.randn(2, 3, SIZES[name], SIZES[name])
    expected = logits(backbone, model, images)
    assert expected.shape == (2, 3)
    backbone.save(model, tmp_path / "model", task)

    again = opened(name, tmp_path / "model", **size)
    torch.manual_seed(1)
    assert torch.equal(logits(again, again.build(task), images), expected)
    assert again.pipeline == backbone.pipeline

    alone = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(alone(images), expected)
    config = timm.data.resolve_model_data_config(alone)
    assert config["input_size"] == (3, *backbone.pipeline.size)
    assert tuple(config["mean"]) == backbone.pipeline.mean
    assert config["crop_pct"] == backbone.pipeline.crop_pct
    assert config["interpolation"] == backbone.pipeline.interpolation
    assert alone.pretrained_cfg["label_names"] == list(task.head.names)


def test_the_seed_decides_the_head_and_nothing_else_of_the_weights(tmp_path, make_task):
    backbone = opened("resnet10t", img_size=32)
    backbone.save(backbone.build(make_task()), tmp_path / "model", make_task())
    heads = []
    for seed in (1, 1, 2):
        start = Timm(name=str(tmp_path / "model"))
        start.open(lambda name: name)
        torch.manual_seed(seed)
        model = start.build(make_task(5))
        heads.append(model.fc.weight)
        assert model.fc.weight.shape[0] == 5
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(("kind", "outputs"), [("multi-label", 4), ("regression", 1)])
def test_other_heads(kind, outputs, make_task):
    backbone = opened("resnet10t", img_size=32)
    model = backbone.build(make_task(outputs, kind))
    assert logits(backbone, model, torch.zeros(2, 3, 32, 32)).shape == (2, outputs)


def test_a_frozen_trunk_is_that_of_the_weights(tmp_path, make_task):
    """The trunk is read whole and strictly, also where the classifier has another size."""
    source = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")  # noqa: TID251 - what users have
    backbone = opened("tf_efficientnet_lite0", weights=str(tmp_path / "weights.pth"))
    model = backbone.build(make_task())
    kept = {n: v for n, v in source.state_dict().items() if not n.startswith("classifier")}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    assert model.classifier.out_features == 3
    same = opened("tf_efficientnet_lite0", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(same.build(make_task(7)).classifier.weight, source.classifier.weight)


def test_grey_images_go_through_an_adapted_first_layer(tmp_path, make_task):
    """A grey image gives what its colour copy gives: timm sums the first layer over the channels."""
    source = timm.create_model("resnet10t").eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")  # noqa: TID251
    backbone = opened("resnet10t", weights=str(tmp_path / "weights.pth"), in_chans=1)
    model = backbone.build(make_task(1000))
    assert backbone.pipeline.channels == 1
    assert backbone.pipeline.mean == (pytest.approx(sum((0.485, 0.456, 0.406)) / 3),)
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = source(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(logits(backbone, model, grey), expected)
    backbone.save(model, tmp_path / "model", make_task(1000))
    again = Timm(name=str(tmp_path / "model"))  # nothing said: it is known to be grey
    again.open(lambda name: name)
    assert again.pipeline == backbone.pipeline
    assert torch.equal(
        logits(again, again.build(make_task(1000)), grey), logits(backbone, model, grey)
    )


def test_dropout_and_stochastic_depth_reach_the_model(make_task):
    backbone = opened("resnet18", img_size=32, drop_rate=0.3, drop_path_rate=0.2)
    model = backbone.build(make_task())
    assert model.drop_rate == 0.3
    assert model.layer4[1].drop_path.drop_prob == pytest.approx(0.2)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "vit_base_patch16_clip_224.openai",
        "tf_efficientnet_lite0.in1k",
        "convnext_atto",
    ],
)
def test_preprocessing_is_that_of_the_weights(name):
    backbone = opened(name, pretrained=True)
    expected = timm.data.resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
    )
    pipeline = backbone.pipeline
    assert (pipeline.channels, *pipeline.size) == expected["input_size"]
    for field in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        assert getattr(pipeline, field) == expected[field]


# --- Memory format -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "densenet121"]
)
def test_channels_last_changes_no_result_and_arrives(name, make_task):
    results = []
    for channels_last in (False, True):
        backbone = opened(name, img_size=64, channels_last=channels_last)
        torch.manual_seed(0)
        model = backbone.build(make_task()).eval()
        seen = []
        first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.extend([*inputs, output])
        )
        torch.manual_seed(1)
        examples = [{"image": torch.randn(3, 64, 64)} for _ in range(2)]
        with torch.no_grad():
            results.append(backbone.forward(model, backbone.collate(examples)))
        formats = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen]
        assert formats == [channels_last] * 2
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet10t", True), ("mobilenetv3_small_050", True), ("vit_tiny_patch16_224", False),
     ("swin_tiny_patch4_window7_224", False)],
)  # fmt: skip
def test_auto_takes_channels_last_for_convolutions(name, expected, make_task):
    backbone = opened(name)
    model = backbone.build(make_task())
    images = backbone.collate([{"image": torch.zeros(3, 32, 32)}] * 2)["image"]
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    last = torch.channels_last
    assert images.is_contiguous(memory_format=last) == expected
    assert all(weight.is_contiguous(memory_format=last) for weight in weights) == expected
