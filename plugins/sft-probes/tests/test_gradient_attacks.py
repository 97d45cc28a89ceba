"""FGSM and PGD: closed forms, properties, and an independent implementation."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sft_probes.attacks import fgsm, gradient, pgd, strongest
from sft_probes.auto_attack import attacks_for, autoattacked

RADII = (0.0, 0.01, 0.03, 0.1, 0.3)


def linear(seed=0, examples=40, classes=2, features=12):
    """Return weights, biases, pixels well inside 0..1 and the labels that the model gives them."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=draws, dtype=torch.float64)
    bias = torch.randn(classes, generator=draws, dtype=torch.float64) * 0.1
    inputs = 0.4 + 0.2 * torch.rand(examples, features, generator=draws, dtype=torch.float64)
    labels = (inputs @ weight.T + bias).argmax(dim=1)
    return weight, bias, inputs, labels


def loss_by(logits, labels):
    return lambda inputs: nn.functional.cross_entropy(logits(inputs), labels, reduction="none")


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_margin_of_a_linear_model_falls_by_radius_times_the_l1_norm(attack, radius) -> None:
    weight, bias, inputs, labels = linear()

    def logits(x):
        return x @ weight.T + bias

    loss = loss_by(logits, labels)
    if attack == "fgsm":
        found = fgsm(loss, inputs, radius, bounds=None)
    else:
        start = radius * (2 * torch.rand_like(inputs) - 1)
        size = radius / 4
        found = pgd(loss, inputs, radius, steps=12, step_size=size, start=start, bounds=None)
    rows = torch.arange(len(inputs))
    others = 1 - labels
    apart = weight[labels] - weight[others]

    def margin(x):
        answers = logits(x)
        return answers[rows, labels] - answers[rows, others]

    torch.testing.assert_close(margin(found), margin(inputs) - radius * apart.abs().sum(dim=1))
    right = (logits(found).argmax(dim=1) == labels).double().mean()
    expected = (margin(inputs) > radius * apart.abs().sum(dim=1)).double().mean()
    assert right == expected


@pytest.mark.parametrize("radius", RADII)
def test_the_margin_in_an_l2_ball_falls_by_radius_times_the_l2_norm(radius) -> None:
    weight, bias, inputs, labels = linear(1)
    loss = loss_by(lambda x: x @ weight.T + bias, labels)
    rows = torch.arange(len(inputs))
    apart = weight[labels] - weight[1 - labels]

    def margin(x):
        answers = x @ weight.T + bias
        return answers[rows, labels] - answers[rows, 1 - labels]

    expected = margin(inputs) - radius * apart.norm(dim=1)
    one = fgsm(loss, inputs, radius, norm="l2", bounds=None)
    torch.testing.assert_close(margin(one), expected)
    many = pgd(loss, inputs, radius, steps=8, step_size=radius / 2, norm="l2", bounds=None)
    torch.testing.assert_close(margin(many), expected)


@pytest.fixture(scope="module")
def network():
    """A small network and images (n, c, h, w) in 0..1, with the labels it gives them."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 9, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    ).eval()
    images = torch.rand(24, 3, 8, 8)
    return net, images, net(images).argmax(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_of_pgd_without_a_start_is_fgsm(network, norm) -> None:
    net, images, labels = network
    loss = loss_by(net, labels)
    radius = torch.linspace(0, 0.2, len(images))
    one = pgd(loss, images, radius, steps=1, step_size=radius, norm=norm)
    other = fgsm(loss, images, radius, norm=norm)
    if norm == "linf":
        assert torch.equal(one, other)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("norm", "bounds"), [("linf", (0.0, 1.0)), ("l2", None)])
def test_what_is_found_is_within_the_ball_and_the_bounds(network, norm, bounds) -> None:
    net, images, labels = network
    radius = torch.rand(len(images)) * 0.2
    start = (2 * torch.rand_like(images) - 1) * radius.view(-1, 1, 1, 1)
    if norm == "l2":
        start = start / images[0].numel() ** 0.5
    found = pgd(
        loss_by(net, labels),
        images,
        radius,
        steps=5,
        step_size=radius,
        start=start,
        norm=norm,
        bounds=bounds,
    )
    away = (found - images).flatten(1)
    lengths = away.abs().amax(dim=1) if norm == "linf" else away.norm(dim=1)
    assert (lengths <= radius + 1e-6).all()
    assert lengths.max() > 0
    if bounds:
        assert found.min() >= 0
        assert found.max() <= 1


def test_radius_0_is_the_image_itself(network) -> None:
    net, images, labels = network
    loss = loss_by(net, labels)
    assert torch.equal(fgsm(loss, images, 0.0), images)
    assert torch.equal(pgd(loss, images, 0.0, steps=3, step_size=0.1), images)


def test_an_example_does_not_depend_on_the_others(network) -> None:
    net, images, labels = network
    whole = pgd(loss_by(net, labels), images, 0.05, steps=4, step_size=0.02)
    alone = pgd(loss_by(net, labels[5:6]), images[5:6], 0.05, steps=4, step_size=0.02)
    torch.testing.assert_close(whole[5:6], alone)


def test_a_gradient_that_is_nan_moves_nothing() -> None:
    inputs = torch.tensor([[0.0, 0.5], [0.2, 0.3]])
    found = gradient(
        lambda x: x.sqrt().sum(dim=1) + x[:, 0] * torch.tensor([float("nan"), 1.0]), inputs
    )
    assert found.isfinite().all()
    assert not found[0, 0]


def test_the_strongest_is_that_with_the_greatest_loss() -> None:
    one, other = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.0]])
    assert strongest(lambda x: x[:, 0], [one, other]).flatten().tolist() == [3.0, 2.0]
    assert strongest(lambda x: x[:, 0], [one]) is one


@pytest.mark.parametrize("name", ["fgsm", "pgd", "l2-pgd"])
def test_foolbox_finds_the_same(network, name) -> None:
    """An independent implementation, without a random start, step for step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import foolbox

    net, images, labels = network
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    loss, radius = loss_by(net, labels), 0.06
    if name == "fgsm":
        theirs = foolbox.attacks.LinfFastGradientAttack(random_start=False)
        ours = fgsm(loss, images, radius)
    elif name == "pgd":
        theirs = foolbox.attacks.LinfPGD(abs_stepsize=0.015, steps=10, random_start=False)
        ours = pgd(loss, images, radius, steps=10, step_size=0.015)
    else:
        radius = 0.8
        theirs = foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=10, random_start=False)
        ours = pgd(loss, images, radius, steps=10, step_size=0.2, norm="l2")
    _, (found,), _ = theirs(model, images, labels, epsilons=[radius])
    torch.testing.assert_close(ours, found, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("classes", "attacks"), [(4, 4), (3, 3), (2, 3)])
def test_autoattack_is_within_the_ball_and_at_least_as_strong_as_pgd(classes, attacks) -> None:
    assert len(attacks_for(classes)) == attacks
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, classes)).eval()
    images = torch.rand(12, 3, 4, 4)
    labels = net(images).argmax(dim=1)
    state = torch.get_rng_state()
    options = {"classes": classes, "iterations": 10, "queries": 20}
    found = autoattacked(net, images, labels, 0.2, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found - images).abs().max() <= 0.2 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    ours = pgd(loss_by(net, labels), images, 0.2, steps=10, step_size=0.05)

    def right(inputs):
        return int((net(inputs).argmax(dim=1) == labels).sum())

    assert right(found) <= right(ours) < len(images)
    assert torch.equal(autoattacked(net, images, labels, 0.2, **options), found)
