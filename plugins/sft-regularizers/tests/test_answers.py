"""Distances between answers against torch's own distributions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, kl_divergence

from sft_engine import Batch
from sft_regularizers.answers import (
    entropy,
    frozen_statistics,
    kl_at_temperature,
    sum_over_items,
    symmetric_kl,
)
from sft_regularizers.gradient_edits import (
    annealed_deviation,
    task_driven_masks,
    task_free_mask,
)
from sft_regularizers.spikes import spike

P, Q = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def distribution(logits, kind):
    if kind == "classification":
        return Categorical(logits=logits)
    return Independent(Bernoulli(logits=logits), 1)


@pytest.mark.parametrize(("kind", "labels"), [("classification", 1), ("multi-label", 4)])
def test_symmetric_kl_and_entropy_are_those_of_torch(kind, labels):
    p, q = distribution(P, kind), distribution(Q, kind)
    both = (kl_divergence(p, q) + kl_divergence(q, p)) / labels
    assert torch.allclose(symmetric_kl(P, Q, kind), both)
    assert torch.equal(symmetric_kl(P, Q, kind), symmetric_kl(Q, P, kind))
    assert (symmetric_kl(P, P, kind) == 0).all()
    assert torch.allclose(entropy(P, kind), p.entropy() / labels)


def test_real_values_differ_by_their_squares():
    assert torch.allclose(symmetric_kl(P, Q, "regression"), (P - Q).square().mean(1))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 50.0])
def test_distillation_at_a_temperature(temperature):
    each = kl_at_temperature(P, Q, temperature)
    t, s = Categorical(logits=Q / temperature), Categorical(logits=P / temperature)
    assert torch.allclose(each, temperature**2 * kl_divergence(t, s))


def test_the_factor_keeps_gradients_in_scale():
    """Hinton et al., equation 4: at high temperatures the gradient is that of the logits' distance."""
    student = P.clone().requires_grad_()
    (grad,) = torch.autograd.grad(kl_at_temperature(student, Q, 1e4).sum(), student)
    centred = (P - P.mean(1, keepdim=True)) - (Q - Q.mean(1, keepdim=True))
    assert torch.allclose(grad, centred / P.shape[1], atol=1e-3)


def test_masked_examples_do_not_count():
    each = torch.tensor([1.0, 2.0, 4.0])
    batch = Batch({}, {"label": torch.tensor([0, -100, 1])}, [0, 1, 2])
    assert sum_over_items(each, batch) == 5
    batch.targets["label"] = torch.ones(3, 2)
    assert sum_over_items(each, batch) == 7


def test_batch_norm_forgets_what_it_sees_in_a_second_pass():
    norm = nn.BatchNorm1d(4).double()
    norm(P)
    before = {name: each.clone() for name, each in norm.state_dict().items()}
    with frozen_statistics(norm):
        inside = norm(Q * 3)
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())
    assert norm.momentum == 0.1
    assert torch.equal(inside, norm(Q * 3))  # used the statistics of the batch
    assert norm.num_batches_tracked == 2


def test_task_free_masks_keep_the_mean():
    torch.manual_seed(0)
    like = torch.zeros(200_000)
    mask = task_free_mask(like, 0.3)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.3])
    deviation = (0.7 / 0.3 / len(like)) ** 0.5
    assert mask.mean().item() == pytest.approx(1, abs=3 * deviation)


def test_task_driven_masks_take_the_largest_over_all_weights():
    importance = {"a": torch.tensor([[1.0, 9.0], [2.0, 8.0]]), "b": torch.tensor([7.0, 0.0])}
    masks = task_driven_masks(importance, 0.5)
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [True, False]
    equal = task_driven_masks({"a": torch.zeros(10)}, 0.3)
    assert equal["a"].sum() == 3


def test_noise_is_annealed():
    assert annealed_deviation(0.3, 0.55, 0) == pytest.approx(0.3**0.5)
    assert annealed_deviation(1.0, 0.5, 15) == pytest.approx(0.5)


def test_what_counts_as_a_spike():
    usual = [1.0, 2.0, 100.0]
    assert spike(19.9, usual, 10, 3) == ""
    assert spike(21.0, usual, 10, 3) == "the gradient norm 21 is 10.5 times the usual 2"
    assert spike(21.0, usual, 10, 4) == ""
    assert spike(float("nan"), [], 10, 4) == "the gradient norm is nan"
