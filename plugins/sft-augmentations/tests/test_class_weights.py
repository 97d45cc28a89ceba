"""Class weights against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from sft_augmentations.class_weights import (
    ClassWeights,
    effective_numbers,
    effective_pos_weights,
    effective_weights,
)
from sft_augmentations.rare import binary_focal_sum, focal_sum
from sft_augmentations.sampling import MASKED
from sft_engine.builtin.losses import balanced_pos_weights
from sft_engine.builtin.tasks import TextClassification

COUNTS = torch.tensor([5000, 500, 50, 5])


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.9999])
def test_effective_weights_are_the_formula(beta: float) -> None:
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS.tolist()]
    expected = torch.tensor(raw, dtype=torch.float64) * 4 / sum(raw)
    torch.testing.assert_close(effective_weights(COUNTS, beta), expected)


def test_without_beta_all_weights_are_one() -> None:
    assert effective_weights(COUNTS, 0.0).tolist() == [1, 1, 1, 1]
    assert effective_pos_weights(COUNTS, 6000, 0.0).tolist() == [1, 1, 1, 1]


def test_near_one_it_is_the_inverse_frequency() -> None:
    label = np.repeat(np.arange(4), COUNTS.numpy())
    theirs = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(4), y=label))
    ours = effective_weights(COUNTS, 1 - 1e-12)
    torch.testing.assert_close(ours, theirs * 4 / theirs.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        effective_pos_weights(COUNTS, 6000, 1 - 1e-12),
        balanced_pos_weights(COUNTS, 6000),
        rtol=1e-6,
        atol=0,
    )


def test_effective_numbers_lie_between_one_and_n() -> None:
    for beta in (0.1, 0.9, 0.999):
        numbers = effective_numbers(COUNTS, beta)
        assert ((numbers >= 1) & (numbers <= COUNTS)).all()
        assert (numbers.diff() <= 0).all()


def test_classes_without_examples() -> None:
    counts = torch.tensor([10, 0, 10])
    for beta in (0.0, 0.99):
        assert effective_weights(counts, beta).tolist() == pytest.approx([1, 0, 1])
        assert effective_pos_weights(counts, 20, beta).tolist() == pytest.approx([1, 1, 1])


def test_one_label_is_weighed_like_yes_and_no() -> None:
    pair = effective_weights(torch.tensor([90, 10]), 0.99)  # no, yes
    torch.testing.assert_close(
        effective_pos_weights(torch.tensor([10]), 100, 0.99)[0], pair[1] / pair[0]
    )


@pytest.mark.parametrize("method", ["inverse", "effective"])
def test_masked_examples_are_not_counted(method: str) -> None:
    task = TextClassification()
    task.names = ("a", "b")
    component = ClassWeights(method=method, beta=0.9)
    label = torch.tensor([0, 0, 0, 1])
    masked = torch.tensor([0, 0, 0, 1, MASKED, MASKED])
    assert torch.equal(component.weights(label, task), component.weights(masked, task))


def test_focal_loss_takes_them() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(9, 4, dtype=torch.float64), torch.randint(4, (9,))
    weight = effective_weights(COUNTS, 0.99)
    expected = functional.cross_entropy(logits, label, weight, reduction="sum")
    torch.testing.assert_close(focal_sum(logits, label, 0.0, weight), expected)
    flags = functional.one_hot(label, 4).double()
    many = effective_pos_weights(COUNTS, 6000, 0.99)
    plain = functional.binary_cross_entropy_with_logits(logits, flags, pos_weight=many)
    torch.testing.assert_close(binary_focal_sum(logits, flags, 0.0, many) / 9, plain)
