"""Classifiers of many families: built, saved, read by this backbone and by torchvision alone."""

from __future__ import annotations

import json
import re
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import _api, get_model

from sft_engine import RecipeError
from sft_torchvision.backbone import Torchvision

SIZES = {
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 96,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_0": 32,
    "squeezenet1_1": 32,
    "swin_v2_t": 64,
}
"""Those of moderate size, with small images; the larger ones are in the table of layer groups."""


def opened(name, folder=None, **options):
    backbone = Torchvision(name=name, **{"weights": "none", **options})
    backbone.open(lambda name: name if folder is None else str(folder))
    return backbone


def logits(backbone, model, images):
    with torch.no_grad():
        return backbone.forward(model.eval(), {"image": images})


@pytest.mark.parametrize("name", SIZES)
def test_what_is_saved_is_read_again_bit_for_bit(name, tmp_path, make_task):
    task = make_task()
    options = {"img_size": SIZES[name], "channels_last": False}
    backbone = opened(name, **options)
    torch.manual_seed(0)
    model = backbone.build(task)
    images = torch.randn(2, 3, SIZES[name], SIZES[name])
    expected = logits(backbone, model, images)
    assert expected.shape == (2, 3)
    backbone.save(model, tmp_path / "model", task)

    again = opened(name, tmp_path / "model", **options)
    torch.manual_seed(1)
    assert torch.equal(logits(again, again.build(task), images), expected)
    assert again.pipeline == backbone.pipeline

    config = json.loads((tmp_path / "model" / "config.json").read_text())
    exported = backbone.load_exported(tmp_path / "model", "torchvision").eval()
    with torch.no_grad():
        assert torch.equal(exported(images), expected)
    assert config["label_names"] == list(task.head.names)


@pytest.mark.parametrize(
    ("name", "size", "trains"),
    [("resnet18", 32, "fc"), ("mobilenet_v3_small", 32, "classifier.3"),
     ("squeezenet1_1", 32, "classifier.1"), ("regnet_y_400mf", 32, "fc")],
)  # fmt: skip
def test_the_last_layer_alone_is_new(name, size, trains, tmp_path, make_task):
    source = get_model(name, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")  # noqa: TID251 - what users have
    backbone = opened(name, weights=str(tmp_path / "weights.pth"), img_size=size)
    model = backbone.build(make_task())
    before, after = source.state_dict(), model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        f"{trains}.weight",
        f"{trains}.bias",
    }
    assert backbone.layer_groups(model)[-1].parameters == (f"{trains}.weight", f"{trains}.bias")
    assert logits(backbone, model, torch.zeros(2, 3, size, size)).shape == (2, 3)
    kept = opened(name, weights=str(tmp_path / "weights.pth"), img_size=size).build(make_task(7))
    assert all(torch.equal(kept.state_dict()[n], value) for n, value in before.items())


@pytest.mark.parametrize(("kind", "outputs"), [("multi-label", 4), ("regression", 1)])
def test_other_heads(kind, outputs, make_task):
    backbone = opened("shufflenet_v2_x0_5", img_size=32)
    model = backbone.build(make_task(outputs, kind))
    assert logits(backbone, model, torch.zeros(2, 3, 32, 32)).shape == (2, outputs)


def test_a_vision_transformer_takes_another_size(tmp_path, make_task):
    """Positions are interpolated from weights, and the size is written with the model."""
    arguments = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    vit = models.VisionTransformer(image_size=64, num_classes=3, **arguments)
    backbone = opened("vit_b_16", img_size=32)
    larger = backbone._size_argument()
    assert larger == {"image_size": 32}
    made = []
    backbone._create = lambda _, **options: (
        made.append(options) or models.VisionTransformer(**arguments, **options)
    )
    resized = backbone._resized(vit)
    assert made == [{"num_classes": 3, "image_size": 32}]
    assert resized.encoder.pos_embedding.shape == (1, 5, 8)
    assert torch.equal(resized.encoder.pos_embedding[:, 0], vit.encoder.pos_embedding[:, 0])
    assert torch.equal(resized.conv_proj.weight, vit.conv_proj.weight)


def test_a_vision_transformer_of_odd_size(make_task):
    backbone = opened("vit_b_16", img_size=40)
    vit = models.VisionTransformer(64, 16, 1, 2, 8, 16)
    with pytest.raises(RecipeError, match="patches of 16 pixels, and img_size = 40 is no multiple"):
        backbone._resized(vit)


# --- Weights API ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"),
    [("resnet18", "DEFAULT"), ("resnet50", "IMAGENET1K_V2"), ("resnet50", "ResNet50_Weights.IMAGENET1K_V1"),
     ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), ("efficientnet_b3", "DEFAULT"), ("swin_v2_t", "DEFAULT"),
     ("inception_v3", "DEFAULT")],
)  # fmt: skip
def test_preprocessing_is_that_of_the_weights(name, weights):
    pipeline = opened(name, weights=weights).pipeline
    preset = models.get_model_weights(name)[weights.rpartition(".")[2]].transforms()
    assert pipeline.size == (preset.crop_size[0],) * 2
    assert pipeline.resize == preset.resize_size[0]
    assert pipeline.interpolation == preset.interpolation.value
    assert list(pipeline.mean) == preset.mean
    assert list(pipeline.std) == preset.std


def test_another_size_keeps_the_share_of_the_crop():
    assert opened("resnet50", weights="IMAGENET1K_V2").pipeline.resize == 232
    smaller = opened("resnet50", weights="IMAGENET1K_V2", img_size=112).pipeline
    assert (smaller.size, smaller.resize) == ((112, 112), 116)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "densenet121"])
def test_weights_of_torchvision_give_what_torchvision_gives(name, tmp_path, monkeypatch, make_task):
    """What the builder of a model does beside loading (input scale, auxiliary heads) is not lost."""
    full = {"aux_logits": True, "init_weights": True} if name != "densenet121" else {}
    state = get_model(name, **full).state_dict()
    asked = []

    def served(url, **options):
        asked.append(options)
        return {key: value.clone() for key, value in state.items()}

    monkeypatch.setattr(_api, "load_state_dict_from_url", served)
    if name == "densenet121":
        loaded = lambda model, **_: model.load_state_dict(state)  # noqa: E731
        monkeypatch.setattr(models.densenet, "_load_state_dict", loaded)
    size = 96
    expected = get_model(name, weights="DEFAULT").eval()
    backbone = opened(name, weights="DEFAULT", img_size=size, channels_last=False)
    model = backbone.build(make_task(1000))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(logits(backbone, model, images), expected(images))
    assert {"check_hash": True, "progress": False, "weights_only": True} in asked
    assert not any(key.startswith(("aux", "AuxLogits")) for key in model.state_dict())
    backbone.save(model, tmp_path / "model", make_task(1000))
    again = opened(name, tmp_path / "model", img_size=size, channels_last=False)
    again_logits = logits(again, again.build(make_task(1000)), images)
    assert torch.equal(again_logits, logits(backbone, model, images))


def test_old_names_in_files_of_densenet(tmp_path, make_task):
    state = get_model("densenet121", num_classes=3).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in state.items()
    }
    assert old.keys() != state.keys()
    save_file(old, tmp_path / "old.safetensors")
    model = opened("densenet121", weights=str(tmp_path / "old.safetensors")).build(make_task())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


# --- Mistakes ------------------------------------------------------------------------------------


def one_sentence(caught):
    text = str(caught.value)
    assert text.startswith("[backbone] ")
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "resnet19"},
            "neither a folder nor a classifier of torchvision: did you mean `resnet18`",
        ),
        ({"name": "fcn_resnet50"}, "neither a folder nor a classifier"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V9"}, "has no weights .*IMAGENET1K_V1.*none"),
    ],
)
def test_names_that_lead_nowhere(options, words):
    with pytest.raises(RecipeError, match=words) as caught:
        opened(**options)
    one_sentence(caught)


def test_weights_that_cannot_be_fetched(monkeypatch, make_task):
    def refused(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refused)
    backbone = opened("resnet18", weights="DEFAULT")
    with pytest.raises(
        RecipeError, match=r"could not be had .*no network.* weights = \"none\""
    ) as caught:
        backbone.build(make_task())
    one_sentence(caught)


def test_arguments_that_it_does_not_take(make_task):
    backbone = opened("resnet18", arguments={"depth": 3})
    with pytest.raises(
        RecipeError, match=r"cannot be created with these arguments .*depth"
    ) as caught:
        backbone.build(make_task())
    one_sentence(caught)


def test_weights_of_another_model(tmp_path, make_task):
    save_file(get_model("resnet34").state_dict(), tmp_path / "w.safetensors")
    backbone = opened("resnet18", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(RecipeError, match="does not fit its weights") as caught:
        backbone.build(make_task())
    one_sentence(caught)


def test_folders_of_something_else(tmp_path):
    with pytest.raises(
        RecipeError, match=r"has no config\.json: give the name of a model"
    ) as caught:
        opened(str(tmp_path))
    one_sentence(caught)
    (tmp_path / "config.json").write_text('{"architecture": "resnet10t"}')
    with pytest.raises(RecipeError, match="that torchvision has not written") as caught:
        opened(str(tmp_path))
    one_sentence(caught)


def test_a_folder_without_weights(tmp_path, make_task):
    backbone = opened("resnet18", img_size=32)
    backbone.save(backbone.build(make_task()), tmp_path, make_task())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"has no model\.safetensors that can be read") as caught:
        opened(str(tmp_path)).build(make_task())
    one_sentence(caught)
