"""How far runs agree example by example: their scores may be equal although their answers are not."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
LEAST_RUNS = 2


def _answers(predictions: ArrayLike) -> NDArray[np.int64]:
    """Number the answers (runs, examples); answers may be texts."""
    table = np.asarray(predictions)
    if table.ndim != 2 or table.shape[0] < LEAST_RUNS or table.shape[1] == 0:  # noqa: PLR2004
        raise ValueError(f"predictions of shape {table.shape}: needs two runs and an example")
    _, codes = np.unique(table, return_inverse=True)
    return np.asarray(codes.reshape(table.shape), dtype=np.int64)


def _votes(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the runs that gave each answer (examples, answers)."""
    examples, kinds = codes.shape[1], int(codes.max()) + 1
    places = (codes + kinds * np.arange(examples)).ravel()
    return np.bincount(places, minlength=examples * kinds).reshape(examples, kinds)


def pairwise_disagreement(predictions: ArrayLike) -> float:
    """Return the share of examples on which two runs differ, averaged over all pairs of runs.

    Source: O. Milani Fard et al., NeurIPS 2016 (churn); as a measure of instability P. Du, D. Nguyen, 2023.

    Args:
        predictions: Answers (runs, examples).

    Raises:
        ValueError: there is one run, or no example.
    """
    return float(disagreement_of_examples(predictions).mean())


def disagreement_of_examples(predictions: ArrayLike) -> Floats:
    """Return for each example the share of pairs of runs that differ on it (examples,)."""
    codes = _answers(predictions)
    runs, votes = codes.shape[0], _votes(codes)
    return np.asarray(1 - (votes * (votes - 1)).sum(axis=1) / (runs * (runs - 1)))


def disagreement_matrix(predictions: ArrayLike) -> Floats:
    """Return the share of examples on which each two runs differ (runs, runs)."""
    codes = _answers(predictions)
    return np.stack([(codes != row).mean(axis=1) for row in codes])


@dataclass(frozen=True)
class Churn:
    """What changes for users when the second model takes the place of the first.

    Args:
        churn: Share of examples whose answer changes.
        negative_flips: Share that was right and is wrong now.
        positive_flips: Share that was wrong and is right now.
        least: What the churn cannot be less than: |accuracy of the first - of the second|.
        least_negative: What negative flips cannot be less than: the loss of accuracy, or 0.
    """

    churn: float
    negative_flips: float
    positive_flips: float
    least: float
    least_negative: float


def churn(first: ArrayLike, second: ArrayLike, truth: ArrayLike) -> Churn:
    """Compare the answers of two models, example by example (n,).

    Source: O. Milani Fard et al., "Launch and Iterate", NeurIPS 2016; negative flips S. Yan et al., CVPR 2021.

    Raises:
        ValueError: there are no examples, or not equally many.
    """
    one, two, right = np.asarray(first), np.asarray(second), np.asarray(truth)
    if not one.shape == two.shape == right.shape or one.ndim != 1 or len(one) == 0:
        raise ValueError(f"answers of shapes {one.shape}, {two.shape} and truth of {right.shape}")
    before, after = one == right, two == right
    gap = float(before.mean() - after.mean())
    return Churn(
        churn=float((one != two).mean()),
        negative_flips=float((before & ~after).mean()),
        positive_flips=float((~before & after).mean()),
        least=abs(gap),
        least_negative=max(0.0, gap),
    )


def fleiss_kappa(predictions: ArrayLike) -> float:
    """Return the agreement of runs beyond chance: 1 all agree, 0 as by chance.

    NaN where all runs give the same answer to all examples: chance alone would explain that.

    Source: J. L. Fleiss, Psychological Bulletin 76 (1971) 378-382.

    Args:
        predictions: Answers (runs, examples).
    """
    votes = _votes(_answers(predictions))
    shares = votes.sum(axis=0) / votes.sum()
    chance = float((shares**2).sum())
    observed = 1 - float(disagreement_of_examples(predictions).mean())
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def jensen_shannon(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return the Jensen-Shannon divergence in nats, 0 to ln 2, of distributions along the last axis.

    Source: J. Lin, IEEE Trans. Information Theory 37 (1991) 145-151.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    middle = (one + two) / 2
    return np.asarray((_relative(one, middle) + _relative(two, middle)) / 2).clip(min=0)


def _relative(one: Floats, two: Floats) -> Floats:
    """Return the sum of p ln(p / q), where nothing times the logarithm of nothing is nothing."""
    safe = np.where(one > 0, one, 1.0)
    ratio = np.where(one > 0, safe / np.where(two > 0, two, 1.0), 1.0)
    # A NaN is not above 0, but has to stay one.
    return np.asarray(np.where(np.isnan(one), one, one * np.log(ratio)).sum(axis=-1))


def mean_jensen_shannon(probabilities: ArrayLike) -> float:
    """Return the Jensen-Shannon divergence of two runs, averaged over examples and pairs of runs.

    Args:
        probabilities: (runs, examples, classes).

    Raises:
        ValueError: there is one run, or no example.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 3 or table.shape[0] < LEAST_RUNS or table.shape[1] == 0:  # noqa: PLR2004
        raise ValueError(f"probabilities of shape {table.shape}: needs two runs and an example")
    pairs = itertools.combinations(table, 2)
    return float(np.mean([jensen_shannon(one, two).mean() for one, two in pairs]))


def instability(probabilities: ArrayLike, reference: ArrayLike | None = None) -> Floats:
    """Return how far the probability of each example moves from run to run (examples,).

    The mean absolute difference between the runs' probabilities and a reference run's; its mean over examples
    is the MIS, mean instability of predictions. Over several classes it is half the summed difference
    (total variation), which for two classes is the difference of either.

    Source: R. D. Riley, G. S. Collins, Biometrical Journal 65 (2023) 2200302 (mean absolute prediction error).

    Args:
        probabilities: (runs, examples) or (runs, examples, classes).
        reference: (examples,) or (examples, classes); None for the mean of the runs.

    Raises:
        ValueError: there is one run and no reference.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    if reference is None and len(table) < LEAST_RUNS:
        raise ValueError("one run alone does not move: give a reference")
    centre = table.mean(axis=0) if reference is None else np.asarray(reference, dtype=np.float64)
    gaps = np.abs(table - centre).mean(axis=0)
    return np.asarray(gaps.sum(axis=-1) / 2 if gaps.ndim > 1 else gaps)
