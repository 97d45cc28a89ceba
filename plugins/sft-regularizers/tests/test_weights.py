"""Mixing and averaging of weights against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from sft_regularizers.averages import include_, mean_of, move_average_, warm_decay
from sft_regularizers.before_training import add_relative_noise_, renew_
from sft_regularizers.consistency import normalize_spectrally_
from sft_regularizers.mixout import mixed
from sft_regularizers.sharpness import adaptive_worst_step, worst_step
from sft_regularizers.statistics import update_statistics
from sft_regularizers.wise import best_of, between

torch.manual_seed(1)
W, START = torch.randn(2, 3, 5, dtype=torch.float64)


# --- mixout ---------------------------------------------------------------------------------------


def masks(number, p):
    return (torch.rand(number, 5) >= p).double()


def test_mixout_without_probability_is_the_weight_itself():
    assert mixed(W, START, torch.zeros(5), 0.0) is W


def test_mixout_towards_zero_is_inverted_dropout():
    keep = masks(1, 0.4)[0]
    x = torch.randn(2, 5, dtype=torch.float64)
    dropped = x * keep / 0.6
    ours = x @ mixed(W, torch.zeros_like(W), keep, 0.4).T
    assert torch.allclose(ours, dropped @ W.T)


def test_the_mean_of_mixout_is_the_weight():
    draws = torch.stack([mixed(W, START, keep, 0.7) for keep in masks(10_000, 0.7)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - W).abs() < 4 * error).all()


@pytest.mark.parametrize(("scale", "factor"), [(True, 1 / 0.4), (False, 1.0)])
def test_the_gradient_of_mixout(scale, factor):
    weight, keep = W.clone().requires_grad_(), masks(1, 0.6)[0]
    value = mixed(weight, START, keep, 0.6, scale_gradient=scale).sum()
    (grad,) = torch.autograd.grad(value, weight)
    assert torch.allclose(grad, keep.expand(3, 5) * factor)


# --- sharpness ------------------------------------------------------------------------------------


def test_sam_on_a_quadratic():
    a = torch.randn(4, 4, dtype=torch.float64)
    a = a @ a.T
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(0.5 * w @ a @ w, w)
    (step,) = worst_step([g], 0.3)
    (uphill,) = torch.autograd.grad(0.5 * (w + step) @ a @ (w + step), w)
    aw = a @ w.detach()
    assert torch.allclose(uphill, a @ (w.detach() + 0.3 * aw / aw.norm()))


def test_sam_steps_have_length_rho_over_all_weights():
    steps = worst_step([W, START[0]], 0.05)
    assert torch.cat([s.flatten() for s in steps]).norm() == pytest.approx(0.05)
    assert all((s == 0).all() for s in worst_step([W * torch.nan, START], 0.05))
    assert all((s == 0).all() for s in worst_step([W * 0], 0.05))


def test_asam_does_not_depend_on_how_layers_are_scaled():
    """Kwon et al., theorem 3: with eta = 0 the step scales with the weights."""
    g, h = torch.randn_like(W), torch.randn_like(START)
    plain = adaptive_worst_step([W, START], [g, h], 0.5, 0.0)
    scaled = adaptive_worst_step([W * 7, START / 7], [g / 7, h * 7], 0.5, 0.0)
    assert torch.allclose(scaled[0], plain[0] * 7)
    assert torch.allclose(scaled[1], plain[1] / 7)
    sizes = torch.cat([(s / w).flatten() for s, w in zip(plain, (W, START), strict=True)])
    assert sizes.norm() == pytest.approx(0.5)


# --- averages -------------------------------------------------------------------------------------


def test_ema_in_closed_form():
    average = {"w": START.clone()}
    for _ in range(20):
        move_average_(average, {"w": W}, 0.9)
    assert torch.allclose(average["w"], W * (1 - 0.9**20) + START * 0.9**20)


def test_means_are_arithmetic():
    members = list(torch.randn(7, 3, dtype=torch.float64))
    average = {"w": members[0].clone()}
    for count, member in enumerate(members[1:], start=1):
        include_(average, {"w": member}, count)
    expected = torch.stack(members).mean(0)
    assert torch.allclose(average["w"], expected)
    assert torch.allclose(mean_of([{"w": m} for m in members])["w"], expected)
    assert torch.equal(mean_of([{"w": W}] * 4)["w"], W)


def test_counters_are_copied():
    average = {"n": torch.tensor(3)}
    move_average_(average, {"n": torch.tensor(9)}, 0.999)
    assert average["n"] == 9


def test_the_first_updates_forget_more():
    assert warm_decay(0.999, 0) == 0.1
    assert warm_decay(0.999, 10**6) == 0.999


def test_statistics_are_those_of_torch():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))

    batches = list(torch.randn(6, 8, 4))
    ours, theirs = net(), net()
    ours[0].eval()
    theirs[2].p = 0.0  # torch leaves dropout on
    update_bn(batches, theirs)
    update_statistics(ours, batches, ours)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert ours[1].momentum == 0.1
    assert (ours[0].training, ours[1].training) == (False, True)


def test_without_batch_norm_no_batch_is_asked_for():
    update_statistics(nn.Linear(1, 1), iter(()), lambda _: pytest.fail("asked"))


# --- between start and end ------------------------------------------------------------------------


def test_wise_ft_ends_are_exact_and_a_linear_model_is_interpolated():
    start, end = {"w": START, "n": torch.tensor(1)}, {"w": W, "n": torch.tensor(5)}
    assert torch.equal(between(start, end, 0.0)["w"], START)
    assert torch.equal(between(start, end, 1.0)["w"], W)
    assert between(start, end, 0.0)["n"] == 5
    x = torch.randn(5, dtype=torch.float64)
    expected = 0.7 * (START @ x) + 0.3 * (W @ x)
    assert torch.allclose(between(start, end, 0.3)["w"] @ x, expected)


def test_the_best_share():
    assert best_of([(0.0, 0.5), (0.5, 0.9), (1.0, 0.8)], "max") == 0.5
    assert best_of([(0.0, 0.9), (0.5, 0.9), (1.0, float("nan"))], "max") == 0.5
    assert best_of([(0.0, 0.5), (1.0, 0.4)], "min") == 1.0


# --- before training ------------------------------------------------------------------------------


def test_noise_is_bounded_by_the_spread():
    weight = W.clone()
    add_relative_noise_(weight, 0.15, torch.Generator().manual_seed(0))
    assert 0 < (weight - W).abs().max() <= 0.15 / 2 * W.std()


def test_new_weights():
    layer, norm = nn.Linear(200, 100), nn.LayerNorm(7)
    for module in (layer, norm):
        renew_(module, 0.02, torch.Generator().manual_seed(0))
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert (layer.bias == 0).all()
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()


def test_spectral_norm():
    weight = W.clone()
    normalize_spectrally_(weight)
    assert torch.linalg.svdvals(weight)[0] == pytest.approx(1)
    assert torch.allclose(weight / weight.norm(), W / W.norm())
