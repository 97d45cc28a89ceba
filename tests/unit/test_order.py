"""The order is pinned: a change of these numbers would change every run that is resumed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_engine import order


def test_permutation_is_pinned():
    assert order.permutation(10, 0, 0).tolist() == [0, 7, 8, 2, 5, 9, 4, 6, 3, 1]
    assert order.mix(0) == 16294208416658607535  # first output of SplitMix64 seeded with 0
    assert order.mix(1, 2) != order.mix(2, 1)


def test_random_bits_are_splitmix64():
    # Reference outputs of the algorithm for seed 1234567, from its published test vectors.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert order.random_bits(3, 1234567).tolist() == expected


@given(n=st.integers(1, 400), seed=st.integers(0, 2**62), epoch=st.integers(0, 100))
def test_every_example_once(n, seed, epoch):
    assert sorted(order.permutation(n, seed, epoch).tolist()) == list(range(n))


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize(
    ("n", "batch", "world", "micro"),
    list(itertools.product([1, 15, 16, 17, 203], [1, 5, 16], [1, 2, 3, 4], [1, 3, 4, 16])),
)
def test_shares_cover_every_window_in_equally_many_rounds(n, batch, world, micro, buckets):
    lengths = [i % 7 for i in range(n)] if buckets else None
    windows = order.windows(n, batch, seed=3, epoch=1, lengths=lengths)
    assert sorted(np.concatenate(windows).tolist()) == list(range(n))
    assert sum(len(w) == batch for w in windows) >= n // batch - (0 if not buckets else 1)
    for window in windows:
        ranks = [order.shares(window, rank, world, micro) for rank in range(world)]
        assert len({len(shares) for shares in ranks}) == 1
        assert all(len(share) <= micro for shares in ranks for share in shares)
        rounds = zip(*ranks, strict=True)
        together = [share for each_round in rounds for share in each_round]
        assert np.concatenate(together).tolist() == window.tolist()


def test_windows_do_not_depend_on_the_number_of_processes():
    one = order.windows(100, 16, seed=0, epoch=0)
    for world in (2, 3):
        shares = [order.shares(one[0], rank, world, 4) for rank in range(world)]
        assert sorted(np.concatenate(sum(shares, [])).tolist()) == sorted(one[0].tolist())


def test_buckets_save_padding_and_still_mix():
    lengths = order.random_bits(5000, 1) % np.uint64(100) + np.uint64(1)
    plain = order.windows(5000, 20, 0, 0)
    bucketed = order.windows(5000, 20, 0, 0, lengths=lengths)

    def padded(windows):
        return sum(int(lengths[w].max()) * len(w) for w in windows)

    assert padded(bucketed) < 0.62 * padded(plain)
    first = [int(lengths[w].mean()) for w in bucketed[:50]]
    assert len(set(first)) > 20  # windows of all lengths come early


def test_epochs_and_seeds_differ():
    orders = {tuple(order.permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_drawing_follows_the_weights():
    weights = np.array([1.0, 2.0, 0.0, 7.0])
    ids = order.draw(weights, 20000, seed=5, epoch=0)
    shares = np.bincount(ids, minlength=4) / 20000
    assert shares[2] == 0
    # Three standard deviations of a share of 0.7 among 20,000 draws are 0.0097.
    assert np.abs(shares - weights / 10).max() < 0.0097


def test_generators_of_examples_are_independent():
    draws = {order.generator(0, epoch, i).random() for epoch in range(3) for i in range(100)}
    assert len(draws) == 300
    assert order.generator(1, 2, 3).random() == order.generator(1, 2, 3).random()
