"""Scores that tell inputs of the kind that a model knows from others, and how well they do.

Every score is high for what is in distribution; in the figures, in distribution is the positive class.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sft_probes.measures import logits_total, probabilities_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ids = NDArray[np.int64]

RIDGE = 1e-6
"""Added to the covariance, as a share of its mean variance: directions without any stay invertible."""


# --- scores: (n,) of logits (n, classes) or features (n, features) ----------------------------------


def max_probability(logits: Floats) -> Floats:
    """Return the greatest softmax probability, MSP (Hendrycks and Gimpel 2017)."""
    return np.asarray(probabilities_of(logits, several=False).max(axis=1))


def max_logit(logits: Floats) -> Floats:
    """Return the greatest logit (Hendrycks et al. 2022)."""
    return np.asarray(logits.max(axis=1))


def energy(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the negative energy T log sum exp(z / T) (Liu et al. 2020, equation 4)."""
    return np.asarray(temperature * logits_total(logits / temperature)[:, 0])


def mahalanobis(features: Floats, training: Floats, labels: Ids) -> Floats:
    """Return minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018).

    All classes share one covariance, that of training features around their own class mean.

    Args:
        features: (n, f).
        training: (m, f).
        labels: Class of each of these (m,).
    """
    kinds, place = np.unique(labels, return_inverse=True)
    means = np.stack([training[labels == kind].mean(axis=0) for kind in kinds])
    centred = training - means[place]
    covariance = centred.T @ centred / len(training)
    covariance[np.diag_indices_from(covariance)] += RIDGE * covariance.trace() / len(covariance)
    inverse = np.linalg.pinv(covariance, hermitian=True)
    away = features[:, None, :] - means
    return np.asarray(-np.einsum("nkf,fg,nkg->nk", away, inverse, away, optimize=True).min(axis=1))


def nearest(features: Floats, training: Floats, neighbours: int) -> Floats:
    """Return minus the distance to the k-th nearest training example (Sun et al. 2022).

    Args:
        features: (n, f); brought to length 1, as those of training.
        training: (m, f).
        neighbours: k; at most m.
    """
    alike = _unit(features) @ _unit(training).T
    k = min(neighbours, len(training))
    kth = -np.partition(-alike, k - 1, axis=1)[:, k - 1]
    return np.asarray(-np.sqrt(np.maximum(0, 2 - 2 * kth)))


def _unit(features: Floats) -> Floats:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, np.finfo(np.float64).tiny))


# --- figures --------------------------------------------------------------------------------------


def auroc(inside: Floats, outside: Floats) -> float:
    """Return the probability that an example of inside has the higher score, ties one half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    least = len(inside) * (len(inside) + 1) / 2
    return float((ranks.sum() - least) / (len(inside) * len(outside)))


def aupr(positive: Floats, negative: Floats) -> float:
    """Return the average precision: sum of precision times the rise of recall, over thresholds."""
    scores = np.concatenate([positive, negative])
    is_positive = np.repeat([1.0, 0.0], [len(positive), len(negative)])
    levels, group = np.unique(-scores, return_inverse=True)
    hits = np.bincount(group, is_positive, minlength=len(levels))
    precision = hits.cumsum() / np.bincount(group, minlength=len(levels)).cumsum()
    return float((precision * hits).sum() / len(positive))


def fpr_at(inside: Floats, outside: Floats, tpr: float = 0.95) -> float:
    """Return the share of outside that is taken for inside where at least `tpr` of inside are.

    Args:
        inside: Scores of what is in distribution, the positive class.
        outside: Scores of what is not.
        tpr: True positive rate.
    """
    kept = max(1, math.ceil(tpr * len(inside) - 1e-9))
    threshold = np.sort(inside)[-kept]
    return float((outside >= threshold).mean())


def figures(inside: Floats, outside: Floats) -> dict[str, float]:
    """Return AUROC, AUPR with either as positive class, and FPR at 95 % TPR."""
    return {
        "auroc": auroc(inside, outside),
        "aupr_in": aupr(inside, outside),
        "aupr_out": aupr(-outside, -inside),
        "fpr_at_95_tpr": fpr_at(inside, outside),
    }
