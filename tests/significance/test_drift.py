from __future__ import annotations

import math

import numpy as np
import pytest

from sft_engine.significance.drift import linear_cka, relative_drift

RNG = np.random.default_rng(8)


def cka_by_kernels(one, two):
    """HSIC of centred Gram matrices, as in equations 3 to 5 of Kornblith et al."""
    n = len(one)
    centre = np.eye(n) - 1 / n
    kernels = [centre @ x @ x.T @ centre for x in (one, two)]

    def hsic(a, b):
        return np.trace(a @ b) / (n - 1) ** 2

    k, m = kernels
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("n", "d", "e"), [(30, 4, 6), (5, 8, 3)])
def test_cka_is_that_of_kernels(n, d, e):
    one = RNG.normal(3, 1, (n, d))
    two = one @ RNG.normal(size=(d, e)) + RNG.normal(size=(n, e))
    assert linear_cka(one, two) == pytest.approx(cka_by_kernels(one, two))
    assert linear_cka(two, one) == pytest.approx(linear_cka(one, two))


def test_cka_does_not_see_rotation_scale_and_shift():
    one = RNG.normal(size=(20, 5))
    turned, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    assert linear_cka(one, 3 * one @ turned + 7) == pytest.approx(1)
    assert linear_cka(one, RNG.normal(size=(20, 5))) < 0.7


def test_cka_edges():
    assert math.isnan(linear_cka(np.ones((4, 2)), RNG.normal(size=(4, 2))))
    assert math.isnan(linear_cka(np.ones((0, 2)), np.ones((0, 3))))
    assert math.isnan(linear_cka([[math.nan], [1.0]], [[1.0], [2.0]]))
    with pytest.raises(ValueError, match="representations of shapes"):
        linear_cka(np.ones((4, 2)), np.ones((5, 2)))


def test_drift_by_hand():
    start = {"a": [3.0, 4.0], "b": [[0.0]]}
    whole, parts = relative_drift(start, {"a": [3.0, 5.0], "b": [[2.0]], "head": [1.0]})
    assert parts == {"a": pytest.approx(0.2), "b": math.inf}
    assert whole == pytest.approx(math.sqrt(1 + 4) / 5)
    assert relative_drift(start, start) == (0, {"a": 0, "b": 0})
    assert math.isnan(relative_drift({"a": [1.0]}, {"a": [math.nan]})[0])


@pytest.mark.parametrize("end", [{}, {"a": [1.0, 2.0]}])
def test_drift_needs_the_same_weights(end):
    with pytest.raises(ValueError, match="'a'"):
        relative_drift({"a": [1.0]}, end)
