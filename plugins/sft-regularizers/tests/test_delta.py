"""DELTA against its formula, written out: for vectors, tokens and images, with and without attention."""

from __future__ import annotations

import copy

import pytest
import torch
from one_step import SEEN, gradients_of, use
from torch import nn
from torch.nn import functional

from sft_engine import RecipeError
from sft_engine.testing.runs import run_recipe
from sft_regularizers.attention import Switch, attention_of
from sft_regularizers.features import Listener, feature_distance, map_of

PICTURES = """
[task]
use = "image-classification"
[data]
use = "tiny/pictures"
validation = 8
test = 8
[backbone]
use = "tiny/image"
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
steps = 2
log_every = 1
[evaluation]
test = false
every_epochs = 0
[checkpoint]
best = "last"
every_epochs = 0
[optimizer]
use = "sgd"
lr = 0.5
"""


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_the_distance_is_that_of_the_authors_code():
    """`0.5 * sum_j c W_j |FM_j - FM*_j|^2 / (h w)`, summed over examples."""
    own, start, w = drawn(4, 6, 3, 5), drawn(4, 6, 3, 5) * 2, drawn(6).softmax(0)
    norms = torch.linalg.vector_norm((own - start).flatten(2), dim=2)
    expected = 0.5 * (6 * w * norms**2 / 15).sum(dim=1)
    assert torch.allclose(feature_distance(own, start, w, channels_last=False), expected)
    last = [each.permute(0, 2, 3, 1) for each in (own, start)]
    assert torch.allclose(feature_distance(*last, w, channels_last=True), expected)
    even = torch.full((6,), 1 / 6, dtype=torch.float64)
    assert torch.allclose(
        feature_distance(own, start, even, channels_last=False),
        feature_distance(own, start, channels_last=False),
    )


def test_padding_does_not_count():
    own, start = drawn(2, 5, 4), drawn(2, 5, 4) * 3
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    short = feature_distance(own[:1, :3], start[:1, :3], channels_last=True)
    whole = feature_distance(own, start, mask=mask, channels_last=True)
    assert torch.allclose(whole[:1], short)
    own[0, 3:] += 9
    assert torch.equal(feature_distance(own, start, mask=mask, channels_last=True), whole)


def test_a_vector_is_a_map_of_one_position():
    own, start = drawn(3, 4), drawn(3, 4) * 2
    expected = 0.5 * (own - start).square().sum(1)
    assert torch.allclose(feature_distance(own, start, channels_last=True), expected)


def test_near_features_have_digits_in_bf16():
    own = torch.ones(1, 4, dtype=torch.bfloat16)
    assert feature_distance(own, own * 1.0078125, channels_last=True).dtype == torch.float32


def hidden_of(model, ids):
    """Return the features that the layer groups of the tiny network end in, and the mask of the first."""
    mask = (ids > 0).unsqueeze(-1).to(torch.float64)
    embedded = model.embeddings(ids)
    hidden = (embedded * mask).sum(1) / mask.sum(1).clamp(min=1)
    features = [embedded]
    for block in model.blocks:
        step = block(hidden)
        features.append(step)
        hidden = hidden + step
    return features, mask.squeeze(-1), model.head(model.norm(hidden))


def test_two_steps_by_hand(seen):
    """In the first step the features are those of the start; in micro-batches of 4."""
    overrides = ["train.steps=2", "train.micro_batch_size=4"]
    run = seen(use("delta", alpha=0.8, beta=0.3), overrides)
    first, start = run.iterates[0], copy.deepcopy(run.start)
    rows = [row for batch in run.batches[4:] for row in batch.inputs["ids"]]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.cat([batch.targets["label"] for batch in run.batches[4:]])
    model = run.start
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(first[name])
    own, mask, logits = hidden_of(model, ids)
    with torch.no_grad():
        before, _, _ = hidden_of(start, ids)
    tokens = (own[0] - before[0]).square().sum(2) * mask
    apart = tokens.sum(1) / mask.sum(1)
    apart = apart + sum((o - b).square().sum(1) for o, b in zip(own[1:], before[1:], strict=True))
    head = [*model.norm.parameters(), *model.head.parameters()]
    loss = functional.cross_entropy(logits, labels) + 0.8 * 0.5 * apart.mean()
    loss = loss + 0.3 * 0.5 * sum(p.square().sum() for p in head)
    assert run.step(gradients_of(model, loss)) < 1e-13
    records = [r for r in run.records if r["kind"] == "train"]
    assert records[0]["loss/delta"] == 0
    assert records[1]["loss/delta"] == pytest.approx(0.8 * 0.5 * apart.mean().item(), rel=1e-9)


@pytest.mark.parametrize("layers", [["block.1"], ["blocks.1"]])
def test_layers_by_group_or_by_module(seen, layers):
    run = seen(use("delta", alpha=0.8, beta=0.0, layers=layers), ["train.steps=2"])
    component = next(a.component for a in run.run.active if a.planned.name == "delta")
    assert component._own._modules.keys() == {"blocks.1"}


def test_layers_that_are_not_there(seen):
    sentence = (
        r'`layers` of delta: "layer4" matches neither a layer group below the head '
        r"\(embeddings, block.0, block.1\) nor a module whose output is a feature map, such as `head`"
    )
    with pytest.raises(RecipeError, match=sentence):
        seen(use("delta", layers=["layer4"]))


def component_of(run):
    return next(a.component for a in run.run.active if a.planned.name == "delta")


def test_attention_is_how_the_loss_rises_without_a_channel(seen):
    """With a head that is not fitted, of the model as it is: every example of the split."""
    options = {"attention": "measured", "examples": 48, "head_epochs": 0, "layers": ["block.0"]}
    run = seen(use("delta", **options), ["train.steps=2"])
    split = run.run.splits["train"]
    rows = [torch.tensor(each) for each in split.examples.ids]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.tensor(split.examples.columns["label"])
    model, losses = run.start, []
    for channel in [None, *range(8)]:

        def switched(_module, _inputs, output, channel=channel):
            kept = torch.ones(8, dtype=torch.float64)
            kept[channel or 0] = 0.0 if channel is not None else 1.0
            return output * kept

        hook = model.blocks[0].register_forward_hook(switched)
        with torch.no_grad():
            losses.append(functional.cross_entropy(hidden_of(model, ids)[2], labels))
        hook.remove()
    expected = (torch.stack(losses[1:]) - losses[0]).softmax(0)
    measured = component_of(run).state_dict()["attention"]
    assert measured.keys() == {"blocks.0"}
    assert torch.allclose(measured["blocks.0"], expected, atol=1e-12)


def test_the_head_of_a_copy_is_fitted_before(seen):
    options = {"attention": "measured", "examples": 48, "layers": ["block.0"]}
    fitted = seen(use("delta", head_epochs=20, **options))
    plain = seen(use("delta", head_epochs=0, **options))
    one, other = (
        component_of(run).state_dict()["attention"]["blocks.0"] for run in (fitted, plain)
    )
    assert one.sum().item() == pytest.approx(1)
    assert not torch.allclose(one, other)
    for name, parameter in fitted.start.named_parameters():
        assert torch.equal(parameter, plain.start.get_parameter(name)), name


def test_attention_of_equal_channels_is_even():
    assert torch.equal(attention_of(torch.zeros(4)), torch.full((4,), 0.25))


def test_a_channel_is_switched_off_in_whatever_a_module_returns():
    switch, features = Switch(lambda _: True), torch.ones(2, 3)
    switch.channel = 1
    expected = torch.tensor([[1.0, 0, 1]] * 2)
    assert torch.equal(switch(nn.Identity(), (), features), expected)
    assert torch.equal(switch(nn.Identity(), (), (features, "more"))[0], expected)
    assert switch(nn.Identity(), (), "nothing") == "nothing"
    assert (switch.channels, features.sum()) == (3, 6)


@pytest.mark.parametrize("attention", ["uniform", "measured"])
def test_maps_of_images(tmp_path, attention):
    """Against torch, in the second step: batch norm makes the two models differ even in the first."""
    known = {("extension", "test/spy"): "one_step:Spy"}
    spy = '[[extension]]\nuse = "test/spy"\n'
    text = PICTURES + spy + use("delta", alpha=0.5, beta=0.0, attention=attention, examples=8)
    run_recipe(tmp_path / "run", text, (), known)
    seen = SEEN.pop()
    component = component_of(seen)
    start = copy.deepcopy(seen.start).eval()
    model = seen.start.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(seen.iterates[0][name])
        image = seen.batches[1].inputs["image"]
        expected = 0.0
        own, before = image, image
        for path in ("stem", "block"):
            own, before = getattr(model, path)(own), getattr(start, path)(before)
            squares = (own - before).square().mean((0, 2, 3))
            weights = component.state_dict()["attention"].get(path)
            if attention == "measured":
                squares = squares * weights * len(weights)
                assert not torch.allclose(weights, weights.mean())
            expected += 0.5 * squares.sum()
    records = [r for r in seen.records if r["kind"] == "train"]
    assert records[1]["loss/delta"] == pytest.approx(0.5 * float(expected), rel=1e-4)


def test_copies_of_a_model_are_not_listened_to():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    listener = Listener(model, ["0", "1"], learning=True)
    twin = copy.deepcopy(model)
    twin(torch.ones(1, 2))
    with torch.no_grad():
        model(torch.ones(1, 2))
    assert listener.take() == {}
    model(torch.ones(1, 2))
    assert list(listener.take()) == ["0", "1"]
    assert listener.take() == {}


def test_what_is_no_map():
    assert map_of(torch.ones(3)) is None
    assert map_of(torch.ones(3, 3, dtype=torch.long)) is None
    assert map_of((torch.ones(2, 2), "more")).shape == (2, 2)
