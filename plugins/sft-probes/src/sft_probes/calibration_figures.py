"""How well probabilities mean what they say, and one number that repairs them.

All functions take probabilities or logits (n, outputs) and `truth` (n, outputs): 1 for the class of an example, or
for each of its labels, else 0. With several labels each pair of example and label is a case of its own, whose
probability is that of the label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_probes.measures import logits_total, probabilities_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BINS = 15
MOST = 6.0
"""Logarithm of the largest temperature, and minus that of the least, that a fit may find."""


@dataclass(frozen=True)
class Calibration:
    """Figures of calibration.

    Args:
        ece: Expected calibration error: sum_m n_m/n |acc_m - conf_m| over 15 bins of equal width of the
            greatest probability (Guo et al. 2017, section 2).
        adaptive_ece: The same over 15 bins of equally many examples (Nguyen and O'Connor 2015).
        classwise_ece: The same over the probability of each class, mean of the classes (Kull et al. 2019).
        mce: Maximum calibration error: the largest |acc_m - conf_m| of the bins of equal width.
        brier: Mean of sum_k (p_k - y_k)^2, from 0 to 2; with several labels the mean of (p - y)^2, 0 to 1.
        nll: Mean negative log-likelihood in nats; with several labels, of a label.
        bins: `low`, `high`, `examples`, `confidence` and `accuracy` of each bin that is not empty.
    """

    ece: float
    adaptive_ece: float
    classwise_ece: float
    mce: float
    brier: float
    nll: float
    bins: list[dict[str, Any]]

    @property
    def figures(self) -> dict[str, float]:
        """The numbers by name."""
        names = ("ece", "adaptive_ece", "classwise_ece", "mce", "brier", "nll")
        return {name: getattr(self, name) for name in names}


def calibration(logits: Floats, truth: Floats, *, several: bool = False) -> Calibration:
    """Return all figures of calibration.

    Args:
        logits: (n, outputs).
        truth: (n, outputs).
        several: An example may have any of the labels.
    """
    shares = probabilities_of(logits, several=several)
    confidence, right = _cases(shares, truth, several=several)
    bins = bins_of(confidence, right)
    gaps = [abs(each["accuracy"] - each["confidence"]) for each in bins]
    per_example = (np.square(shares - truth)).mean() * (1 if several else shares.shape[1])
    return Calibration(
        ece=sum(b["examples"] * gap for b, gap in zip(bins, gaps, strict=True)) / len(confidence),
        adaptive_ece=adaptive_ece(confidence, right),
        classwise_ece=classwise_ece(shares, truth),
        mce=max(gaps),
        brier=float(per_example),
        nll=negative_log_likelihood(logits, truth, several=several),
        bins=bins,
    )


def _cases(shares: Floats, truth: Floats, *, several: bool) -> tuple[Floats, Floats]:
    """Return the probability of each answer, and 1 where it is right."""
    if several:
        return shares.ravel(), truth.ravel()
    chosen = shares.argmax(axis=1)
    rows = np.arange(len(shares))
    return shares[rows, chosen], truth[rows, chosen]


def bins_of(confidence: Floats, right: Floats, bins: int = BINS) -> list[dict[str, Any]]:
    """Return the bins of equal width that hold any case, as reports show them.

    Args:
        confidence: Probability of each answer (n,).
        right: 1 where it is right, else 0 (n,).
        bins: How many; the lower end of each belongs to it.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sure, correct = (np.bincount(place, each, minlength=bins) for each in (confidence, right))
    return [
        {
            "low": m / bins,
            "high": (m + 1) / bins,
            "examples": int(counts[m]),
            "confidence": float(sure[m] / counts[m]),
            "accuracy": float(correct[m] / counts[m]),
        }
        for m in np.flatnonzero(counts).tolist()
    ]


def adaptive_ece(confidence: Floats, right: Floats, bins: int = BINS) -> float:
    """Return the expected calibration error over bins of equally many cases, those of equal ends in order."""
    gaps = (right - confidence)[np.argsort(confidence, kind="stable")]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(gaps))


def classwise_ece(shares: Floats, truth: Floats, bins: int = BINS) -> float:
    """Return the mean over classes of the calibration error of each one's own probability."""
    count, classes = shares.shape
    place = np.minimum((shares * bins).astype(np.int64), bins - 1) + bins * np.arange(classes)
    gaps = np.bincount(place.ravel(), (truth - shares).ravel(), minlength=bins * classes)
    return float(np.abs(gaps).sum() / classes / count)


def negative_log_likelihood(logits: Floats, truth: Floats, *, several: bool = False) -> float:
    """Return the mean negative log-likelihood of an example (with several labels, of a label) in nats."""
    if several:
        return float((np.logaddexp(0, logits) - truth * logits).mean())
    return float((logits_total(logits)[:, 0] - (truth * logits).sum(axis=1)).mean())


def fit_temperature(logits: Floats, truth: Floats, *, several: bool = False) -> float:
    """Return the T that minimises the negative log-likelihood of logits / T (Guo et al. 2017, section 4.2).

    By L-BFGS on log T from T = 1, within exp(-6) .. exp(6); T = 1 where nothing is better.

    Args:
        logits: Of examples that the model was not trained on (n, outputs).
        truth: (n, outputs).
        several: An example may have any of the labels.
    """
    from scipy.optimize import minimize

    cases = logits.size if several else len(logits)

    def loss(log_t: Floats) -> tuple[float, Floats]:
        scaled = logits * math.exp(-float(log_t[0]))
        errors = probabilities_of(scaled, several=several) - truth
        slope = -(errors * scaled).sum() / cases
        return negative_log_likelihood(scaled, truth, several=several), np.array([slope])

    options = {"ftol": 1e-15, "gtol": 1e-9}
    found = minimize(
        loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[(-MOST, MOST)], options=options
    )
    return math.exp(float(found.x[0])) if found.fun < loss(np.zeros(1))[0] else 1.0
