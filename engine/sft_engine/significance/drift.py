"""How far fine-tuning moved a model, and how alike two models see the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Return the likeness of two representations of the same examples: 1 up to rotation and scale.

    NaN where a representation is constant. With fewer examples than features it is close to 1 whatever
    they are.

    Source: S. Kornblith et al., ICML 2019, equation 6 (centred linear CKA, biased estimate).

    Args:
        first: (examples, features).
        second: (examples, other features).

    Raises:
        ValueError: they are not of equally many examples.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 2 or two.ndim != 2 or len(one) != len(two):  # noqa: PLR2004
        raise ValueError(f"representations of shapes {one.shape} and {two.shape}")
    if len(one) == 0:
        return math.nan
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    # The smaller of both products: features by features, or examples by examples.
    if len(one) < max(one.shape[1], two.shape[1]):
        left, right = one @ one.T, two @ two.T
        shared = float((left * right).sum())
        norms = np.linalg.norm(left) * np.linalg.norm(right)
    else:
        shared = float(np.linalg.norm(two.T @ one) ** 2)
        norms = np.linalg.norm(one.T @ one) * np.linalg.norm(two.T @ two)
    return shared / float(norms) if norms > 0 else math.nan


def relative_drift(
    start: Mapping[str, ArrayLike], end: Mapping[str, ArrayLike]
) -> tuple[float, dict[str, float]]:
    """Return |end - start| / |start|, over all weights and by name.

    Infinite where the start is zero and the end is not; 0 where both are. A new head has no start:
    leave it out.

    Args:
        start: Weights by name, before.
        end: The same, after; further names are left out.

    Raises:
        ValueError: a name is missing in `end`, or its shape is another.
    """
    moved, sizes = {}, {}
    for name, given in start.items():
        before = np.asarray(given, dtype=np.float64)
        if name not in end:
            raise ValueError(f"{name!r} is missing after")
        after = np.asarray(end[name], dtype=np.float64)
        if after.shape != before.shape:
            raise ValueError(f"{name!r}: {before.shape} before, {after.shape} after")
        moved[name], sizes[name] = float(((after - before) ** 2).sum()), float((before**2).sum())
    parts = {name: _ratio(moved[name], sizes[name]) for name in moved}
    return _ratio(sum(moved.values()), sum(sizes.values())), parts


def _ratio(moved: float, size: float) -> float:
    if size == 0:
        return math.inf if moved > 0 else moved
    return math.sqrt(moved / size)
