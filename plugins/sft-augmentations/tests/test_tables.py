"""Noise in rows of numbers: its size, and which values may appear."""

from __future__ import annotations

import math

import numpy as np

from sft_augmentations.tables import feature_noise, swap_noise


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_noise_is_in_units_of_the_spread() -> None:
    spread = np.array([0.0, 1.0, 10.0])
    draws = generator()
    rows = np.stack([feature_noise(np.ones(3), spread, 0.5, draws) for _ in range(5000)]) - 1
    assert (rows[:, 0] == 0).all()
    assert np.allclose(rows[:, 1:].std(axis=0), [0.5, 5.0], rtol=0.05)
    assert abs(rows[:, 1].mean()) < 4 * 0.5 / math.sqrt(5000)


def test_swapped_values_are_of_the_same_feature_of_any_row() -> None:
    others = np.arange(40.0).reshape(10, 4)
    draws = generator()
    rows = np.stack([swap_noise(np.full(4, -1.0), others, 0.25, draws) for _ in range(5000)])
    swapped = rows != -1
    assert abs(swapped.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 20_000)
    for feature in range(4):
        assert set(rows[swapped[:, feature], feature]) == set(others[:, feature])
    several = rows[swapped.sum(axis=1) > 1]
    sources = [{int(value) // 4 for value in row if value != -1} for row in several]
    assert any(len(rows_of) > 1 for rows_of in sources)


def test_no_strength_no_change() -> None:
    row = np.array([0.1, 0.2])
    assert (feature_noise(row, np.ones(2), 0.0, generator()) == row).all()
    assert (swap_noise(row, np.ones((3, 2)), 0.0, generator()) == row).all()
