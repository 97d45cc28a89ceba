"""Runs with timm and torchvision, read back by those libraries alone."""

from __future__ import annotations

import json

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import sft_engine


def with_timm(folder):
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def with_torchvision(folder):
    from torchvision.models import get_model

    config = json.loads((folder / "config.json").read_text())
    model = get_model(config["architecture"], num_classes=2, **config["arguments"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


RESNET = ('use = "timm"\nname = "test_resnet"\npretrained = false', "timm", with_timm)
VIT = ('use = "timm"\nname = "test_vit"\npretrained = false', "timm", with_timm)
SQUEEZENET = (
    'use = "torchvision"\nname = "squeezenet1_1"\nweights = "none"\nimg_size = 64',
    "torchvision",
    with_torchvision,
)


@pytest.mark.parametrize(("backbone", "form", "read"), [RESNET, SQUEEZENET])
def test_the_library_gives_the_runs_outputs(backbone, form, read, image_run_with, tmp_path):
    run = image_run_with(backbone)
    done = sft_engine.export(run, form, output=tmp_path / form)
    assert done.difference < 1e-5
    assert done.notes == ()
    with pytest.raises(sft_engine.RecipeError, match=f"allowed: `{form}`, `onnx`, `torch-export`"):
        sft_engine.export(run, "hf")
    said = json.loads((done.folder / "export.json").read_text())
    assert said["inputs"]["image"]["dimensions"] == ["batch", 3, *said["preprocessing"]["size"]]
    assert read(done.folder)(torch.rand(1, 3, 160, 160)).shape == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "form", "read"), [RESNET, VIT, SQUEEZENET])
def test_graphs_and_library_agree(backbone, form, read, image_run_with, tmp_path):
    run = image_run_with(backbone)
    model = read(sft_engine.export(run, form, output=tmp_path / form).folder).eval()
    graph = sft_engine.export(run, "torch-export", output=tmp_path / "graph")
    onnx = sft_engine.export(run, "onnx", output=tmp_path / "onnx")
    program = torch.export.load(graph.folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(onnx.folder / "model.onnx")
    images = torch.rand(2, *onnx.inputs["image"]["dimensions"][1:])
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(program(image=images), expected, atol=1e-5, rtol=0)
    (logits,) = session.run(None, {"image": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)
