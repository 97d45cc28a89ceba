"""Augmentations of rows of numbers, the role `features`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from sft_augmentations.rows import RowAugmentation
from sft_engine import RecipeError
from sft_engine.columns import column_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Split

    Numbers = NDArray[np.float64]

FEATURES = "features"


def feature_noise(
    features: Numbers, spread: Numbers, strength: float, draws: np.random.Generator
) -> Numbers:
    """Return features with Gaussian noise of `strength` times each feature's spread.

    Args:
        features: (f,).
        spread: Standard deviation of each feature in training (f,); a constant feature gets no noise.
        strength: Factor; 0 returns the features' values unchanged.
        draws: Source of randomness.
    """
    return features + strength * spread * draws.standard_normal(len(features))


def swap_noise(
    features: Numbers, others: Numbers, rate: float, draws: np.random.Generator
) -> Numbers:
    """Return features of which each is, with probability `rate`, that of a random other row.

    Every replaced feature comes from a row of its own: what is kept is each feature's distribution, what
    is broken is how they go together (the noise of Vincent et al. 2010, "Stacked Denoising
    Autoencoders", with values that occur instead of zeros).

    Args:
        features: (f,).
        others: Rows to take values from (n, f).
        rate: Probability of each feature.
        draws: Source of randomness.
    """
    swapped = features.copy()
    places = np.flatnonzero(draws.random(len(features)) < rate)
    swapped[places] = others[draws.integers(len(others), size=len(places)), places]
    return swapped


class TableAugmentation(RowAugmentation):
    """Changes the numbers of a row; a subclass says how, in `disturb`."""

    def __init__(self, share: float, until: float) -> None:
        super().__init__(share, until)
        self.values: Numbers = np.zeros((0, 0))

    def disturb(self, features: Numbers, draws: np.random.Generator) -> Numbers:
        """Return the changed numbers."""
        raise NotImplementedError

    def prepare(self, data: Split) -> None:
        """Read the features of all training rows; raise RecipeError if there are none."""
        if FEATURES not in data.rows.column_names:
            raise RecipeError(
                "an augmentation of tables changes the column 'features', which the training split has "
                f"not (found: {', '.join(data.rows.column_names)}); remove the augmentation, or take a "
                "tabular task"
            )
        column = column_of(data.rows, FEATURES)
        self.values = np.asarray(column.flatten(), dtype=np.float64).reshape(len(column), -1)

    def change(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Change the numbers of the row."""
        features = np.asarray(row[FEATURES], dtype=np.float64)
        row[FEATURES] = self.disturb(features, draws).tolist()
        return row


class FeatureNoise(TableAugmentation):
    """Add Gaussian noise to the numbers of a table.

    Args:
        strength: Standard deviation of the noise, in those of each feature in training.
        share: Share of the rows that are changed.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        strength: Annotated[float, Ge(0)] = 0.1,
        share: Annotated[float, Ge(0), Le(1)] = 1.0,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.strength = strength

    @property
    def effective(self) -> bool:
        """Whether there is noise."""
        return super().effective and self.strength > 0

    def prepare(self, data: Split) -> None:
        """Measure the spread of each feature in training."""
        super().prepare(data)
        self.spread = self.values.std(axis=0)

    def disturb(self, features: Numbers, draws: np.random.Generator) -> Numbers:
        """Add noise."""
        return feature_noise(features, self.spread, self.strength, draws)


class SwapNoise(TableAugmentation):
    """Replace numbers of a table by those of the same feature in random training rows.

    Args:
        rate: Probability of each feature to be replaced.
        share: Share of the rows that are changed.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        rate: Annotated[float, Ge(0), Le(1)] = 0.1,
        share: Annotated[float, Ge(0), Le(1)] = 1.0,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.rate = rate

    @property
    def effective(self) -> bool:
        """Whether any feature is replaced."""
        return super().effective and self.rate > 0

    def disturb(self, features: Numbers, draws: np.random.Generator) -> Numbers:
        """Replace some numbers."""
        return swap_noise(features, self.values, self.rate, draws)
