"""Probes of rows of numbers, the role `features`: noise, missing values, a shift of the distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Le, MinLen

from sft_engine.columns import column_of
from sft_probes.severity import RowProbe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Run, Split

    Numbers = NDArray[np.float64]

FEATURES = "features"
_SHOWN = 12


def noisy(
    features: Numbers, spread: Numbers, strength: float, draws: np.random.Generator
) -> Numbers:
    """Return features with Gaussian noise of `strength` times each feature's spread.

    Args:
        features: (f,).
        spread: Standard deviation of each feature in training (f,); a constant feature gets no noise.
        strength: Factor; 0 returns the values unchanged.
        draws: Source of randomness; the same for any strength.
    """
    return features + strength * spread * draws.standard_normal(len(features))


def with_gaps(
    features: Numbers, stand_in: Numbers, rate: float, draws: np.random.Generator
) -> Numbers:
    """Return features of which each is missing with probability `rate`, completely at random.

    Args:
        features: (f,).
        stand_in: What is put where a value is missing (f,), such as the median in training.
        rate: Probability of each feature.
        draws: Source of randomness.
    """
    return np.where(draws.random(len(features)) < rate, stand_in, features)


def shifted(features: Numbers, training: Numbers, distance: float) -> Numbers:
    """Return features moved by `distance` along the distribution that each has in training.

    The value at quantile q becomes that at quantile q + distance, at most the largest (below 0: at least the
    smallest). Between the values of training, quantiles are interpolated. A constant feature stays.

    Args:
        features: (f,).
        training: Values of each feature in training, sorted (n, f).
        distance: In quantiles, -1..1; 0 returns the features themselves.
    """
    if not distance:
        return features
    levels = np.linspace(0, 1, len(training))
    moved = features.copy()
    for place, value in enumerate(features):
        column = training[:, place]
        if column[0] < column[-1]:
            quantile = np.interp(value, column, levels)
            moved[place] = np.interp(np.clip(quantile + distance, 0, 1), levels, column)
    return moved


class TableProbe(RowProbe):
    """Changes the numbers of a row; a subclass says how, in `change`."""

    inputs: ClassVar[frozenset[str]] = frozenset({FEATURES})

    def prepare(self, run: Run, data: Split) -> None:
        """Read the features of the training split, in whose units everything is."""
        super().prepare(run, data)
        training = run.splits.get("train")
        if training is None:
            self.ready = (
                False  # a finished run looks at other data: nothing says what its units are
            )
            return
        column = column_of(training.rows, FEATURES)
        values = np.asarray(column.flatten(), dtype=np.float64).reshape(len(column), -1)
        self.training: Numbers = np.sort(values, axis=0)
        self.spread: Numbers = values.std(axis=0)
        self.median: Numbers = np.median(values, axis=0)

    def change(self, features: Numbers, severity: float, draws: np.random.Generator) -> Numbers:
        """Return the changed numbers; severity 0 returns them as they are."""
        raise NotImplementedError

    def disturb(
        self, row: dict[str, Any], severity: float, draws: np.random.Generator
    ) -> dict[str, Any]:
        """Change the numbers of the row."""
        features = np.asarray(row[FEATURES], dtype=np.float64)
        row[FEATURES] = self.change(features, severity, draws).tolist()
        return row

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the first numbers."""
        numbers = row[FEATURES]
        more = ", ..." if len(numbers) > _SHOWN else ""
        return {"features": ", ".join(f"{n:.4g}" for n in numbers[:_SHOWN]) + more}


class FeatureNoise(TableProbe):
    """Add Gaussian noise to the numbers of a table, as training with `feature-noise` does.

    Args:
        severities: Standard deviation of the noise, in those of each feature in training.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the noise.
    """

    title = "Noise in the features"
    axis = "noise in standard deviations"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(0)], ...], MinLen(1)] = (
            0.1,
            0.25,
            0.5,
            1.0,
        ),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def change(self, features: Numbers, severity: float, draws: np.random.Generator) -> Numbers:
        """Add noise."""
        return noisy(features, self.spread, severity, draws)


class Missing(TableProbe):
    """Leave out values completely at random; the median of the feature in training stands in.

    Args:
        severities: Rates: probability of each value to be missing.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the gaps.
    """

    title = "Missing values"
    axis = "share of values missing"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(0), Le(1)], ...], MinLen(1)] = (
            0.1,
            0.25,
            0.5,
        ),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def change(self, features: Numbers, severity: float, draws: np.random.Generator) -> Numbers:
        """Leave out values."""
        return with_gaps(features, self.median, severity, draws)


class Shift(TableProbe):
    """Move every value along the distribution that its feature has in training.

    Args:
        severities: Distances in quantiles: with 0.1, the median becomes the 60th percentile.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Shift of the features"
    axis = "shift in quantiles"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(-1), Le(1)], ...], MinLen(1)] = (
            0.05,
            0.1,
            0.2,
        ),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def change(self, features: Numbers, severity: float, draws: np.random.Generator) -> Numbers:  # noqa: ARG002 - contract
        """Move values."""
        return shifted(features, self.training, severity)
