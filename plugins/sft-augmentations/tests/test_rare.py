"""Losses and samplers for rare classes, against other implementations and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.loss import JsdCrossEntropy
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from sft_augmentations.consistency import jensen_shannon_sum
from sft_augmentations.rare import (
    Shifted,
    binary_focal_sum,
    class_offsets,
    focal_sum,
    label_offsets,
)
from sft_augmentations.sampling import class_sampling_weights, label_sampling_weights
from sft_engine.builtin import losses


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(9, 4, dtype=torch.float64) * 3


IDS = torch.tensor([0, 1, 2, 3, 0, 1, -100, 3, 2])
FLAGS = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]] * 3)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)

# --- focal -----------------------------------------------------------------------------------------


def test_focal_is_its_formula(logits: torch.Tensor) -> None:
    p = logits.softmax(dim=1)
    rows = [i for i in range(9) if IDS[i] != -100]
    expected = sum(-((1 - p[i, IDS[i]]) ** 2) * p[i, IDS[i]].log() for i in rows)
    torch.testing.assert_close(focal_sum(logits, IDS, 2.0), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_without_gamma_is_cross_entropy(logits, weight, smoothing: float) -> None:
    for target in (IDS, torch.rand(9, 4, dtype=torch.float64).softmax(dim=1)):
        expected = losses.cross_entropy_sum(logits, target, weight, smoothing)
        torch.testing.assert_close(focal_sum(logits, target, 0.0, weight, smoothing), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_binary_focal_is_torchvisions(logits: torch.Tensor, gamma: float) -> None:
    theirs = sigmoid_focal_loss(logits, FLAGS.double(), alpha=-1, gamma=gamma, reduction="none")
    torch.testing.assert_close(binary_focal_sum(logits, FLAGS, gamma), theirs.mean(dim=1).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_binary_focal_without_gamma_is_cross_entropy(logits, weight, smoothing: float) -> None:
    expected = losses.binary_cross_entropy_sum(logits, FLAGS, weight, smoothing)
    torch.testing.assert_close(binary_focal_sum(logits, FLAGS, 0.0, weight, smoothing), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gradients_are_finite_where_the_answer_is_certain(gamma: float) -> None:
    for value, target in ((200.0, torch.tensor([0, 1])), (-200.0, FLAGS[:2, :2])):
        sure = torch.tensor([[value, 0.0], [value, 0.0]], requires_grad=True)
        loss = (focal_sum if target.ndim == 1 else binary_focal_sum)(sure, target, gamma)
        (gradient,) = torch.autograd.grad(loss, sure)
        assert gradient.isfinite().all()


def test_focal_gradients_are_those_of_finite_differences(logits: torch.Tensor) -> None:
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_sum(x, IDS, 2.0, WEIGHT, 0.1), logits)
    assert torch.autograd.gradcheck(lambda x: binary_focal_sum(x, FLAGS, 2.0), logits)


# --- logit adjustment ------------------------------------------------------------------------------


def test_offsets_are_logarithms_of_shares_and_odds() -> None:
    counts = torch.tensor([80, 15, 5])
    torch.testing.assert_close(class_offsets(counts, 1.0).exp(), counts.double() / 100)
    torch.testing.assert_close(
        label_offsets(counts, 100, 1.0).exp(), torch.tensor([4.0, 15 / 85, 5 / 95]).double()
    )
    torch.testing.assert_close(class_offsets(counts, 0.5), class_offsets(counts, 1.0) / 2)
    assert class_offsets(torch.tensor([0, 5]), 1.0).isfinite().all()
    assert label_offsets(torch.tensor([0, 5]), 5, 1.0).isfinite().all()


def test_post_hoc_is_bayes_balanced_on_a_mixture_of_gaussians() -> None:
    """Exact logits of a skewed mixture, corrected, decide as the mixture with equal shares would."""
    centres, shares = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.9, 0.08, 0.02])
    x = torch.linspace(-4, 5, 2001).unsqueeze(1)
    likelihood = -0.5 * (x - centres) ** 2

    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -0.5 * (x - centres) ** 2 + shares.log()

    offsets = class_offsets((shares * 1000).round(), 1.0).float()
    corrected = Shifted(Exact(), -offsets)(x).argmax(dim=1)
    assert torch.equal(corrected, likelihood.argmax(dim=1))
    assert not torch.equal(Exact()(x).argmax(dim=1), corrected)


def test_the_model_in_a_view_keeps_its_own_outputs() -> None:
    class Outputs:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Outputs:
            self.last = Outputs(x)
            return self.last

    model, x = Model(), torch.zeros(2, 3)
    shifted = Shifted(model, torch.tensor([1.0, 2.0, 3.0]))(x)
    assert shifted.logits.tolist() == [[1, 2, 3]] * 2
    assert model.last.logits is x


# --- samplers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_drawn_by_the_power_of_their_size(power: float) -> None:
    label = np.repeat([0, 1, 2], [80, 16, 4])
    weights = class_sampling_weights(label, power)
    sums = np.array([weights[label == k].sum() for k in range(3)])
    expected = np.array([80, 16, 4]) ** (1 - power)
    assert np.allclose(sums / sums.sum(), expected / expected.sum())
    assert weights.mean() == pytest.approx(1)


def test_examples_without_a_label_are_drawn_as_ever() -> None:
    weights = class_sampling_weights(np.array([0, 0, 0, 1, -100]), 1.0)
    assert weights[4] == 1
    assert weights[3] == pytest.approx(3 * weights[0])


def test_the_rarest_label_decides() -> None:
    flags = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [1, 0]], dtype=bool)
    weights = label_sampling_weights(flags, 1.0)
    assert np.allclose(weights / weights[0], [1, 1, 4, 4, 1])
    assert np.allclose(label_sampling_weights(flags, 0.0), 1)


# --- Jensen-Shannon --------------------------------------------------------------------------------


def test_divergence_is_timms(logits: torch.Tensor) -> None:
    views = [logits.float(), logits.float().flip(0), logits.float() * 0.1]
    target = IDS.clamp(min=0)
    both = JsdCrossEntropy(num_splits=3, alpha=12, smoothing=0)(torch.cat(views), target)
    expected = (both - functional.cross_entropy(views[0], target)) / 12
    torch.testing.assert_close(jensen_shannon_sum(views) / 9, expected, rtol=1e-4, atol=1e-5)


def test_divergence_is_zero_for_equals_and_bounded(logits: torch.Tensor) -> None:
    assert abs(jensen_shannon_sum([logits] * 3)) < 1e-5
    apart = [torch.eye(3)[[k]] * 1e4 for k in range(3)]
    torch.testing.assert_close(jensen_shannon_sum(apart), torch.tensor(3.0).log())
