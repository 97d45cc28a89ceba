"""Penalties against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso
from sklearn.linear_model import LinearRegression as LeastSquares
from torch import nn

from sft_regularizers.bss import smallest_singular_values
from sft_regularizers.fisher import fisher_diagonal
from sft_regularizers.penalties import (
    absolute_sum,
    half_square_sum,
    non_orthogonality,
    soft_threshold_,
)
from sft_regularizers.towards_start import half_square_distance, pull_

torch.manual_seed(0)
X = torch.randn(60, 8, dtype=torch.float64)
TRUE = torch.tensor([2.0, -1.0, 0, 0, 0.5, 0, 0, 0], dtype=torch.float64)
Y = X @ TRUE + 0.1 * torch.randn(60, dtype=torch.float64)
START = torch.randn(8, dtype=torch.float64)


def minimized(objective, after=lambda w, lr: None, steps=3000, lr=0.1):
    """Minimize half the mean squared error plus a penalty by gradient descent."""
    w = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        loss = 0.5 * (X @ w - Y).square().mean() + objective(w)
        (grad,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            w -= lr * grad
            after(w, lr)
    return w.detach()


def test_proximal_l1_is_the_lasso_with_the_same_zeros():
    w = minimized(lambda w: 0.0, lambda w, lr: soft_threshold_(w, lr * 0.2))
    lasso = Lasso(alpha=0.2, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, Y)
    assert w.numpy() == pytest.approx(lasso.coef_, abs=1e-9)
    assert ((w == 0).numpy() == (lasso.coef_ == 0)).all()
    assert (w == 0).sum() >= 4


def test_the_subgradient_comes_near_the_lasso_without_zeros():
    w = minimized(lambda w: 0.2 * absolute_sum([w]), lr=0.01)
    lasso = Lasso(alpha=0.2, fit_intercept=False).fit(X, Y)
    assert w.numpy() == pytest.approx(lasso.coef_, abs=0.01)
    assert (w == 0).sum() == 0


def test_elastic_net_is_that_of_scikit_learn():
    ratio, strength = 0.3, 0.4
    w = minimized(
        lambda w: strength * (1 - ratio) * half_square_sum([w]),
        lambda w, lr: soft_threshold_(w, lr * strength * ratio),
    )
    net = ElasticNet(alpha=strength, l1_ratio=ratio, fit_intercept=False, tol=1e-14).fit(X, Y)
    assert w.numpy() == pytest.approx(net.coef_, abs=1e-9)


def ridge(alpha, start):
    """Return (X'X / n + alpha I)^-1 (X'y / n + alpha w0)."""
    n = len(X)
    identity = torch.eye(8, dtype=torch.float64)
    return torch.linalg.solve(X.T @ X / n + alpha * identity, X.T @ Y / n + alpha * start)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 5.0])
def test_l2_sp_is_ridge_towards_the_start(alpha):
    start = {"w": START}
    w = minimized(lambda w: alpha * half_square_distance({"w": w}, start))
    assert torch.allclose(w, ridge(alpha, START), atol=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 5.0, 100.0])
def test_the_decoupled_pull_ends_in_the_same_place(alpha):
    w = minimized(lambda w: 0.0, lambda w, lr: pull_(w, START, lr * alpha))
    assert torch.allclose(w, ridge(alpha, START), atol=1e-9)


def test_no_pull_is_least_squares_and_an_infinite_one_the_start():
    plain = LeastSquares(fit_intercept=False).fit(X, Y).coef_
    assert ridge(0.0, START).numpy() == pytest.approx(plain)
    w = START + 1
    pull_(w, START, 1e12)
    assert torch.allclose(w, START, atol=1e-9)


def test_l2_pulls_to_zero():
    w = minimized(lambda w: 0.3 * half_square_sum([w]))
    assert torch.allclose(w, ridge(0.3, torch.zeros(8, dtype=torch.float64)), atol=1e-9)


def test_fisher_of_one_is_l2_sp():
    weights = {"a": torch.randn(3, 2), "b": torch.randn(4)}
    start = {name: torch.randn_like(each) for name, each in weights.items()}
    ones = {name: torch.ones_like(each) for name, each in weights.items()}
    plain = half_square_distance(weights, start)
    assert torch.equal(half_square_distance(weights, start, ones), plain)
    doubled = {name: 2 * each for name, each in ones.items()}
    assert half_square_distance(weights, start, doubled) == pytest.approx(2 * plain.item())


def test_fisher_of_logistic_regression_in_closed_form():
    w = nn.Parameter(torch.randn(8, dtype=torch.float64))
    unused = nn.Parameter(torch.zeros(2))
    y = (Y > 0).double()
    losses = (
        nn.functional.binary_cross_entropy_with_logits(x @ w, t) for x, t in zip(X, y, strict=True)
    )
    fisher = fisher_diagonal({"w": w, "unused": unused}, losses)
    p = torch.sigmoid(X @ w.detach())
    assert torch.allclose(fisher["w"], ((p - y).unsqueeze(1) * X).square().mean(0))
    assert (fisher["unused"] == 0).all()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 2, 3)])
def test_orthogonality(shape):
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    matrix = w.detach().flatten(1)
    (grad,) = torch.autograd.grad(non_orthogonality(w), w)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    expected = 4 * tall @ (tall.T @ tall - torch.eye(tall.shape[1], dtype=torch.float64))
    expected = expected if tall is matrix else expected.T
    assert torch.allclose(grad.flatten(1), expected)
    q, _ = torch.linalg.qr(tall)
    assert non_orthogonality(q) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("k", [1, 3])
def test_smallest_singular_values_by_eigenvalues(k):
    features = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    value = smallest_singular_values(features, k)
    eigenvalues = np.linalg.eigvalsh((features @ features.T).detach().numpy())
    assert value.item() == pytest.approx(eigenvalues[:k].sum())
    (grad,) = torch.autograd.grad(value, features)
    u, s, v = torch.linalg.svd(features.detach(), full_matrices=False)
    assert torch.allclose(grad, 2 * (u[:, -k:] * s[-k:]) @ v[-k:])
