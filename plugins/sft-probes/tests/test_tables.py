"""Noise, gaps and shifts of rows of numbers against closed forms."""

from __future__ import annotations

import math

import numpy as np

from sft_probes.tables import noisy, shifted, with_gaps


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_noise_is_in_units_of_the_spread_and_grows_in_proportion() -> None:
    spread = np.array([0.0, 1.0, 10.0])
    draws = generator()
    rows = np.stack([noisy(np.ones(3), spread, 0.5, draws) for _ in range(5000)]) - 1
    assert (rows[:, 0] == 0).all()
    assert np.allclose(rows[:, 1:].std(axis=0), [0.5, 5.0], rtol=0.05)
    one, two = (noisy(np.zeros(3), spread, s, generator(1)) for s in (0.25, 0.5))
    assert np.allclose(2 * one, two)
    assert (noisy(np.array([0.1, 0.2, 0.3]), spread, 0.0, generator()) == [0.1, 0.2, 0.3]).all()


def test_gaps_come_with_the_rate_and_are_nested() -> None:
    features, median = np.arange(1.0, 10_001.0), np.zeros(10_000)
    low, high = (with_gaps(features, median, rate, generator(2)) == 0 for rate in (0.1, 0.4))
    assert abs(low.sum() - 1000) < 3 * math.sqrt(10_000 * 0.1 * 0.9)
    assert abs(high.sum() - 4000) < 3 * math.sqrt(10_000 * 0.4 * 0.6)
    assert (low <= high).all()
    assert (with_gaps(features, median, 0.0, generator()) == features).all()


def test_a_shift_moves_along_the_quantiles() -> None:
    """Uniform on 0..1: quantile and value are one, so that the value moves by the distance."""
    uniform = np.linspace(0, 1, 1001)
    training = np.stack([uniform, 100 * uniform**2, np.full(1001, 7.0)], axis=1)
    moved = shifted(np.array([0.5, 25.0, 7.0]), training, 0.2)
    assert np.allclose(moved, [0.7, 49.0, 7.0])
    assert np.allclose(shifted(np.array([0.95, 0.0, 7.0]), training, 0.2)[0], 1.0)
    assert np.allclose(shifted(np.array([0.1, 0.0, 7.0]), training, -0.2)[0], 0.0)
    row = np.array([0.123, 4.0, 7.0])
    assert (shifted(row, training, 0.0) == row).all()
