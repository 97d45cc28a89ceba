"""Models from a local hubconf.py: only with leave, and like any other from there on."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sft_engine import RecipeError
from sft_engine.testing.layer_groups import check_layer_groups, in_one_line
from sft_torchvision.hub import TorchHub

HUBCONF = '''
from pathlib import Path

from torch import nn

Path(__file__).with_name("ran").touch()


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.last = nn.Linear(width, 10)  # registered first, used last
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )

    def forward(self, x):
        return self.last(self.body(x))


def small_net(width=4):
    """A small network."""
    return Net(width)


def no_net():
    return "weights"


def headless():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(4 * 14 * 14))
'''


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def opened(repo, name="small_net", folder=None, **options):
    options = {"img_size": 16, "trust_remote_code": True, **options}
    backbone = TorchHub(repo=str(repo), name=name, **options)
    backbone.check()
    backbone.open(lambda name: name if folder is None else str(folder))
    return backbone


def test_nothing_runs_without_leave(repo, make_task):
    with pytest.raises(RecipeError, match="set trust_remote_code = true") as caught:
        opened(repo, trust_remote_code=False)
    assert "\n" not in str(caught.value)
    assert not (repo / "ran").exists()
    with pytest.raises(RecipeError, match=r"Python code, which loading .* read that repository"):
        TorchHub(repo="owner/name:main", name="net").check()
    TorchHub(repo="owner/name:main", name="net", trust_remote_code=True).check()
    opened(repo).build(make_task())
    assert (repo / "ran").exists()


def test_groups_head_and_round_trip(repo, tmp_path, make_task):
    task = make_task()
    backbone = opened(repo, arguments={"width": 6}, mean=(0.5, 0.5, 0.5))
    model = backbone.build(task)
    groups = backbone.layer_groups(model)
    check_layer_groups(model, groups, backbone._probe)
    assert in_one_line(groups) == "stem(4) body.3(2) head(2)"
    assert groups[-1].parameters == ("last.weight", "last.bias")
    images = torch.randn(2, 3, 16, 16)
    expected = backbone.forward(model.eval(), {"image": images})
    assert expected.shape == (2, 3)
    backbone.save(model, tmp_path / "model", task)
    again = opened(repo, folder=tmp_path / "model", arguments={"width": 6})
    assert again.pipeline == backbone.pipeline
    assert torch.equal(again.forward(again.build(task).eval(), {"image": images}), expected)


def test_weights_from_a_file(repo, tmp_path, make_task):
    source = opened(repo).build(make_task(7))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    model = opened(repo, weights=weights).build(make_task())
    assert torch.equal(model.body[0].weight, source.body[0].weight)
    assert model.last.out_features == 3
    with pytest.raises(RecipeError, match="does not fit its weights"):
        opened(repo, weights=weights, arguments={"width": 5}).build(make_task())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("big_net", "could not be loaded from .*Cannot find callable big_net"),
        ("no_net", "returned str, not a model"),
        ("headless", "ends in LayerNorm, not in a linear layer"),
    ],
)
def test_functions_that_make_no_classifier(name, words, repo, make_task):
    with pytest.raises(RecipeError, match=words) as caught:
        opened(repo, name).build(make_task())
    assert "\n" not in str(caught.value)


def test_places_that_hold_nothing(tmp_path):
    with pytest.raises(RecipeError, match=r"has no hubconf\.py"):
        opened(tmp_path)
    with pytest.raises(RecipeError, match="neither a folder nor a repository"):
        opened("./models")
