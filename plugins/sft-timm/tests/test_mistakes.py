"""Every mistake of a user ends in one sentence that says what to do."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - of a user's
import re
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file

from sft_engine import RecipeError
from sft_timm.backbone import Timm


def opened(**options):
    backbone = Timm(**options)
    backbone.open(lambda name: name)
    return backbone


def saved(folder, make_task, **options):
    backbone = opened(**{"name": "resnet10t", "pretrained": False, "img_size": 32, **options})
    backbone.save(backbone.build(make_task()), folder, make_task())
    return folder


def one_sentence(caught):
    text = str(caught.value)
    assert text.startswith("[backbone] ")
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5O", "is not a model of timm: did you mean `resnet50`?"),
        ("xyzzy", "is not a model of timm: see timm.list_models()"),
        ("resnet50.a1_in2k", 'the weights "a1_in2k", and resnet50 has: .*a1_in1k'),
        ("./photos", "is no folder: check the path"),
        ("local-dir:photos", "is no folder: check the path"),
        (
            "timm/no-such-model",
            "neither a local folder nor could it be had from the hub .*connection",
        ),
        ("hf-hub:timm/no-such-model", "neither a local folder nor could it be had from the hub"),
    ],
)
def test_names_that_lead_nowhere(name, words):
    with pytest.raises(RecipeError, match=words) as caught:
        opened(name=name)
    one_sentence(caught)


def test_folders_that_hold_no_model(tmp_path, make_task):
    with pytest.raises(RecipeError, match=r"has no config\.json: give a folder") as caught:
        opened(name=str(tmp_path))
    one_sentence(caught)
    folder = saved(tmp_path / "model", make_task)
    (folder / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="that timm cannot read"):
        opened(name=str(folder))
    (folder / "config.json").write_text('{"architecture": "resnet10u", "num_classes": 3}')
    with pytest.raises(RecipeError, match='holds a "resnet10u", which this version of timm'):
        opened(name=str(folder))


def test_a_folder_without_weights(tmp_path, make_task):
    folder = saved(tmp_path / "model", make_task)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"cannot be created .*No suitable checkpoints") as caught:
        opened(name=str(folder)).build(make_task())
    one_sentence(caught)


def test_weights_that_cannot_be_had(make_task):
    with pytest.raises(RecipeError, match=r"could not be had .* set pretrained = false") as caught:
        opened(name="resnet10t").build(make_task())
    one_sentence(caught)


def test_a_model_without_weights(make_task):
    with pytest.raises(
        RecipeError, match="has no pretrained weights: set pretrained = false"
    ) as caught:
        opened(name="efficientnet_b0_gn").build(make_task())
    one_sentence(caught)


def test_options_that_the_model_has_not(make_task):
    with pytest.raises(RecipeError, match="has no option drop_path_rate: leave it out") as caught:
        opened(name="vgg11", pretrained=False, drop_path_rate=0.1).build(make_task())
    one_sentence(caught)


def test_sizes_that_the_model_cannot_take(make_task):
    backbone = opened(name="densenet121", pretrained=False, img_size=8)
    with pytest.raises(RecipeError, match=r"8 x 8 pixels .*set img_size") as caught:
        backbone.layer_groups(backbone.build(make_task()))
    one_sentence(caught)


class TestFiles:
    def build(self, make_task, file):
        return opened(name="resnet10t", weights=str(file)).build(make_task())

    def test_no_such_file(self, tmp_path, make_task):
        with pytest.raises(RecipeError, match="is not a file: check the path") as caught:
            self.build(make_task, tmp_path / "none.pth")
        one_sentence(caught)

    def test_of_another_model(self, tmp_path, make_task):
        save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
        with pytest.raises(
            RecipeError, match=r"does not fit its weights .*this very model"
        ) as caught:
            self.build(make_task, tmp_path / "w.safetensors")
        one_sentence(caught)

    def test_a_layer_is_missing(self, tmp_path, make_task):
        state = timm.create_model("resnet10t").state_dict()
        del state["layer1.0.conv1.weight"]
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(RecipeError, match=re.escape('Missing key(s) in state_dict: "layer1.0')):
            self.build(make_task, tmp_path / "w.safetensors")

    def test_truncated(self, tmp_path, make_task):
        whole = tmp_path / "whole.safetensors"
        save_file(timm.create_model("resnet10t").state_dict(), whole)
        (tmp_path / "w.safetensors").write_bytes(whole.read_bytes()[:1000])
        with pytest.raises(
            RecipeError, match=r"cannot be read .*fetch or write it again"
        ) as caught:
            self.build(make_task, tmp_path / "w.safetensors")
        one_sentence(caught)

    def test_a_pickle_that_would_run_code_does_not_run(self, tmp_path, make_task):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "sprung"), "w"))

        torch.save({"conv1.weight": Trap()}, tmp_path / "w.pth")  # noqa: TID251 - the trap
        with pytest.raises(RecipeError, match="is a pickle that holds more than tensors") as caught:
            self.build(make_task, tmp_path / "w.pth")
        one_sentence(caught)
        assert not (tmp_path / "sprung").exists()
        (tmp_path / "plain.pth").write_bytes(pickle.dumps([1, 2]))
        with pytest.raises(RecipeError):
            self.build(make_task, tmp_path / "plain.pth")

    def test_a_training_checkpoint_with_weights_inside(self, tmp_path, make_task):
        state = timm.create_model("resnet10t").state_dict()
        inside = {"epoch": 3, "state_dict": {f"module.{name}": v for name, v in state.items()}}
        torch.save(inside, tmp_path / "w.pth")  # noqa: TID251
        model = self.build(make_task, tmp_path / "w.pth")
        assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])

    def test_something_else(self, tmp_path, make_task):
        torch.save([1.0, 2.0], tmp_path / "w.pth")  # noqa: TID251
        with pytest.raises(RecipeError, match="holds no state dict but list") as caught:
            self.build(make_task, tmp_path / "w.pth")
        one_sentence(caught)


def test_random_weights_of_a_folder_are_random_and_a_run_reads_its_own(tmp_path, make_task):
    """`pretrained = false` means it, but a run that began so is opened with what it has learned."""
    folder = saved(tmp_path / "model", make_task)
    weights = Timm(name=str(folder), channels_last=False)
    weights.open(lambda name: name)
    learned = weights.build(make_task()).fc.weight
    fresh = opened(name=str(folder), pretrained=False)
    assert not torch.equal(fresh.build(make_task()).fc.weight, learned)
    run = Timm(name="resnet10t", pretrained=False)
    run.open(lambda name: str(folder))
    assert torch.equal(run.build(make_task()).fc.weight, learned)
    # A folder that some plugin offers is not a run.
    offered = shutil.copytree(folder, tmp_path / "offered")
    config = json.loads((offered / "config.json").read_text())
    del config["fine_tuned"]
    (offered / "config.json").write_text(json.dumps(config))
    demo = Timm(name="demo:resnet", pretrained=False)
    demo.open(lambda name: str(offered))
    assert not torch.equal(demo.build(make_task()).fc.weight, learned)
