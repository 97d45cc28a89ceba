"""Where the variance of results comes from: training data, seed, and the rest.

The model of a crossed study, D resamples of the training data times S seeds, is
`score = mean + data + seed + rest`, all three random and independent. With one run a cell the interaction
of data and seed is part of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft_engine.significance.intervals import Estimate

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class VarianceComponents:
    """The variance of scores, split.

    Args:
        data: Variance between resamples of the training data.
        seed: Variance between seeds.
        rest: What neither explains.
        negative: Which estimates came out negative, and were set to zero: `data`, `seed`.
        runs: Cells that have a value.
        cells: Cells of the design.
    """

    data: Estimate
    seed: Estimate
    rest: Estimate
    negative: tuple[str, ...]
    runs: int
    cells: int

    @property
    def total(self) -> float:
        """Variance of a run with other data and another seed."""
        return self.data.value + self.seed.value + self.rest.value

    @property
    def shares(self) -> dict[str, float]:
        """Share of each in the total; NaN where nothing varies."""
        total = self.total or math.nan
        parts = {"data": self.data, "seed": self.seed, "rest": self.rest}
        return {name: part.value / total for name, part in parts.items()}


@dataclass(frozen=True)
class _Fit:
    """Sums of squares, degrees of freedom and coefficients of one design."""

    squares: dict[str, float]
    freedom: dict[str, int]
    factor: dict[str, float]


def variance_components(
    scores: ArrayLike, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> VarianceComponents:
    """Split the variance of a crossed study into data, seed and rest.

    Estimates are those of the analysis of variance, negative ones set to zero and named. A missing cell is
    NaN: sums of squares are then each factor's after the other (Henderson's method III), which for a
    full table is the usual analysis of variance. The limits are generalised confidence limits: mean squares
    are divided by drawn chi-squares. For the rest they are the exact ones. Resampling rows and columns
    instead would give limits that are far too narrow with four of each.

    Source: S. R. Searle, G. Casella, C. E. McCulloch, Variance Components (1992), chapters 4.3 and 5.5;
    limits by S. Weerahandi, JASA 88 (1993) 899-905.

    Args:
        scores: (data, seeds), or (data, seeds, repeats); NaN where a run is missing.
        level: Of the intervals.
        draws: For the limits.
        seed: Of these draws.

    Raises:
        ValueError: a factor has fewer than two levels, or too few cells are filled to tell them apart.
    """
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, :, None] if table.ndim == 2 else table  # noqa: PLR2004
    fit = _fitted(table)
    mean = {name: fit.squares[name] / fit.freedom[name] for name in fit.squares}
    raw = {
        name: (mean[name] - mean["rest"]) * fit.freedom[name] / fit.factor[name]
        for name in ("data", "seed")
    }
    rng = np.random.default_rng(seed)
    drawn = {name: fit.squares[name] / rng.chisquare(fit.freedom[name], draws) for name in mean}
    possible = {
        name: (drawn[name] - drawn["rest"]) * fit.freedom[name] / fit.factor[name] for name in raw
    }
    parts = {**raw, "rest": mean["rest"]}
    limits = {
        name: np.quantile(possible[name].clip(min=0), [(1 - level) / 2, (1 + level) / 2])
        for name in possible
    }
    limits["rest"] = _chi_square_limits(fit.squares["rest"], fit.freedom["rest"], level)
    estimates = {
        name: Estimate(max(0.0, parts[name]), float(limits[name][0]), float(limits[name][1]), level)
        for name in parts
    }
    return VarianceComponents(
        **estimates,
        negative=tuple(name for name in raw if raw[name] < 0),
        runs=int((~np.isnan(table)).sum()),
        cells=table.size,
    )


def _chi_square_limits(squares: float, freedom: int, level: float) -> Floats:
    from scipy.stats import chi2

    tails = chi2.ppf([(1 + level) / 2, (1 - level) / 2], freedom)
    return np.asarray(squares / tails)


def _fitted(table: Floats) -> _Fit:
    """Fit mean, data and seeds by least squares, with one of both left out in turn."""
    if table.ndim != 3 or min(table.shape[:2]) < 2:  # noqa: PLR2004
        raise ValueError(
            f"scores of shape {table.shape}: needs two resamples and two seeds at least"
        )
    data, seeds, _ = np.nonzero(~np.isnan(table))
    values = table[~np.isnan(table)]
    values = values - values.mean() if len(values) else values
    columns = {"data": np.eye(table.shape[0])[data], "seed": np.eye(table.shape[1])[seeds]}
    rank = sum(table.shape[:2]) - 1
    both = _residuals(np.hstack([columns["data"], columns["seed"]]))
    freedom_rest = len(values) - rank
    if np.linalg.matrix_rank(np.hstack(list(columns.values()))) < rank or freedom_rest < 1:
        raise ValueError(
            f"{len(values)} of {table.size} cells are filled: too few to tell data from seed"
        )
    rest = float(values @ both @ values)
    squares, freedom, factor = {"rest": rest}, {"rest": freedom_rest}, {}
    for name, other in (("data", "seed"), ("seed", "data")):
        without = _residuals(columns[other])
        squares[name] = float(values @ without @ values) - rest
        freedom[name] = columns[name].shape[1] - 1
        factor[name] = float(np.trace(columns[name].T @ without @ columns[name]))
    return _Fit({name: max(0.0, each) for name, each in squares.items()}, freedom, factor)


def _residuals(columns: Floats) -> Floats:
    """Return the projection on what these columns do not explain."""
    return np.asarray(np.eye(len(columns)) - columns @ np.linalg.pinv(columns))


@dataclass(frozen=True)
class CrossedMean:
    """The mean of a crossed table, as one of many resamples and seeds.

    Args:
        value: Mean of the cells.
        error: Standard error, for other resamples and other seeds.
        freedom: Degrees of freedom, by Satterthwaite.
        p: Two-sided, for a mean of zero; NaN where nothing varies.
    """

    value: float
    error: float
    freedom: float
    p: float


def crossed_mean(scores: ArrayLike) -> CrossedMean:
    """Test whether the mean of a full crossed table differs from zero.

    Cells of one row share their training data and cells of one column their seed, so they are no
    independent values: the standard error is √((MS_data + MS_seed - MS_rest) / cells), never less than that of
    the larger of both factors alone.

    Source: as `variance_components`; degrees of freedom by F. E. Satterthwaite, Biometrics 2 (1946) 110-114.

    Args:
        scores: Differences of two methods, cell by cell (data, seeds).

    Raises:
        ValueError: a factor has fewer than two levels, or a cell is missing.
    """
    from scipy.stats import t

    table = np.asarray(scores, dtype=np.float64)
    if np.isnan(table).any():
        raise ValueError("a cell is missing")
    fit = _fitted(table[:, :, None])
    mean = {name: fit.squares[name] / fit.freedom[name] for name in fit.squares}
    larger = max("data", "seed", key=mean.__getitem__)
    variance = mean["data"] + mean["seed"] - mean["rest"]
    if variance > mean[larger]:
        parts = sum(mean[name] ** 2 / fit.freedom[name] for name in mean)
        freedom = variance**2 / parts
    else:
        variance, freedom = mean[larger], float(fit.freedom[larger])
    value, error = float(table.mean()), math.sqrt(variance / table.size)
    if error <= 1e-12 * max(abs(value), 1e-12):
        return CrossedMean(value, 0.0, float(freedom), math.nan)
    return CrossedMean(value, error, freedom, float(2 * t.sf(abs(value) / error, freedom)))
