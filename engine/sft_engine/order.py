"""Who sees which example when: a pure function of (seed, epoch), the same for any number of processes.

No library draws here: numpy's and torch's generators may change between versions, SplitMix64
(Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
BUCKET_WINDOWS = 50
"""Windows whose examples are sorted by length together; more sorts better and mixes less."""


def mix(*numbers: int, start: int = 0) -> int:
    """Hash integers to one 64-bit key; different tuples give independent keys.

    `start` is the key of the numbers before these: `mix(b, start=mix(a)) == mix(a, b)`.
    """
    state = start
    for number in numbers:
        state = (state + _GAMMA + (number & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
        state ^= state >> 31
    return state


def name_key(name: str) -> int:
    """Hash a name to a key for `mix`, the same in every process."""
    return mix(*name.encode())


def random_bits(n: int, key: int) -> NDArray[np.uint64]:
    """Return n independent 64-bit numbers of the SplitMix64 stream that starts at `key`."""
    state = np.uint64(key) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    bits: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return bits


def permutation(n: int, seed: int, epoch: int) -> Ids:
    """Return a permutation of 0..n-1 that depends on nothing but the arguments."""
    ids: Ids = np.argsort(random_bits(n, mix(seed, epoch)), kind="stable").astype(np.int64)
    return ids


def draw(weights: NDArray[np.float64], n: int, seed: int, epoch: int) -> Ids:
    """Draw n indices with replacement, each with probability proportional to its weight."""
    uniform = random_bits(n, mix(seed, epoch, 1)) / 2.0**64
    cumulative = np.cumsum(weights)
    ids = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    within: Ids = np.minimum(ids, len(weights) - 1).astype(np.int64)
    return within


def windows(
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | NDArray[np.integer] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> list[Ids]:
    """Return the windows of an epoch: each the example ids of one optimizer step, over all processes.

    Args:
        n: Examples in the split.
        batch_size: Examples of a window; the last one drawn may be smaller.
        seed: The `order` seed of the run.
        epoch: Index of the epoch.
        lengths: If given, a window holds examples of similar length (length buckets): the shuffled
            epoch is cut in portions of `BUCKET_WINDOWS` windows, each portion is sorted by length and
            cut in windows, and the windows are shuffled.
        weights: If given, n examples are drawn with replacement instead of each one once.
    """
    ids = permutation(n, seed, epoch) if weights is None else draw(weights, n, seed, epoch)
    if lengths is None:
        return [ids[i : i + batch_size] for i in range(0, n, batch_size)]
    length = np.asarray(lengths)
    portion = BUCKET_WINDOWS * batch_size
    bucketed: list[Ids] = []
    for start in range(0, n, portion):
        part = ids[start : start + portion]
        part = part[np.argsort(length[part], kind="stable")]
        bucketed += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [bucketed[i] for i in permutation(len(bucketed), mix(seed, 2), epoch)]


def shares(window: Ids, rank: int, world: int, micro_batch_size: int) -> list[Ids]:
    """Return the micro-batches of a window that belong to a rank.

    Every rank gets the same number of micro-batches, so that collectives match; micro-batch m of rank
    r is `window[(m * world + r) * size :][:size]`, which may be empty in the last round.
    """
    stride = world * micro_batch_size
    rounds = -(-len(window) // stride)
    starts = (m * stride + rank * micro_batch_size for m in range(rounds))
    return [window[start : start + micro_batch_size] for start in starts]


def generator(*key: int) -> np.random.Generator:
    """Return a generator for one example, independent of workers, ranks and of every other example."""
    return np.random.Generator(np.random.Philox(key=mix(*key)))
