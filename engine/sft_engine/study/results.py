"""What a study shows, as figures; the statistics are those of `sft_engine.significance`."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.significance import agreement, spread
from sft_engine.significance.drift import linear_cka
from sft_engine.significance.variance import variance_components
from sft_engine.study.aftermath import aftermath_of, read_features

if TYPE_CHECKING:
    from sft_engine.comparing.answers import Answers
    from sft_engine.study.evidence import CellResult, Evidence
    from sft_engine.study.folder import StudyFolder

Figures = dict[str, Any]

SHAKIEST = 12
"""Examples that are named."""
MOST_PAIRS = 66
"""Pairs of runs whose representations are compared: all of twelve runs."""


def results_of(evidence: Evidence, study: StudyFolder) -> Figures:
    """Return the figures of a study; a part that the runs do not allow is None, or says why."""
    found: Figures = {
        "metric": evidence.metric,
        "direction": evidence.direction,
        "split": evidence.split,
        "examples": evidence.examples,
        "runs": _counts(evidence),
        "score": _score(evidence),
        "failed": _failed(evidence),
        "variance": _variance(evidence),
        "agreement": _agreement(evidence),
        "instability": _instability(evidence),
        "shakiest": _shakiest(evidence),
        "drift": _drift(evidence, study),
        "cka": _cka(evidence, study),
    }
    return plain(found)  # type: ignore[no-any-return]


def _counts(evidence: Evidence) -> Figures:
    states = [each.ending.state for each in evidence.cells]
    names = ("complete", "stopped", "failed", "open")
    return {"all": len(states), **{name: states.count(name) for name in names}}


def _score(evidence: Evidence) -> Figures | None:
    if not len(evidence.scores):
        return None
    return asdict(spread.summary(evidence.scores, larger_is_better=evidence.larger_is_better))


def _failed(evidence: Evidence) -> Figures:
    """Count runs that failed: no better than a constant answer, diverged, or stopped as hopeless."""
    ended = [each for each in evidence.cells if each.ending.state != "open"]
    constant = evidence.constant_score()
    # Without a constant to compare with, only runs without a result have failed.
    bar = (
        constant
        if not math.isnan(constant)
        else (-math.inf if evidence.larger_is_better else math.inf)
    )
    scores = [each.score if each.complete else math.nan for each in ended]
    rate = spread.failed_run_rate(scores, bar, larger_is_better=evidence.larger_is_better)
    return {"constant": constant, **asdict(rate)}


def _variance(evidence: Evidence) -> Figures:
    try:
        found = variance_components(evidence.table)
    except ValueError as error:
        return {"missing": str(error)}
    parts = {name: asdict(getattr(found, name)) for name in ("data", "seed", "rest")}
    return {
        **parts,
        "total": found.total,
        "shares": found.shares,
        "negative": list(found.negative),
        "runs": found.runs,
    }


def _agreement(evidence: Evidence) -> Figures | None:
    predictions, truth = evidence.predictions(), evidence.truth()
    if predictions is None or truth is None or len(predictions) < agreement.LEAST_RUNS:
        return None
    pairs = [
        agreement.churn(one, two, truth) for one, two in itertools.permutations(predictions, 2)
    ]
    flips = [each.negative_flips for each in pairs]
    found: Figures = {
        "disagreement": agreement.pairwise_disagreement(predictions),
        "largest_disagreement": max(each.churn for each in pairs),
        "least_disagreement": float(np.mean([each.least for each in pairs])),
        "negative_flips": float(np.mean(flips)),
        "most_negative_flips": max(flips),
        "kappa": agreement.fleiss_kappa(predictions),
        "matrix": agreement.disagreement_matrix(predictions).tolist(),
        "names": [each.cell.name for each in _answering(evidence)],
    }
    if evidence.kind == "classification":
        shares = np.stack([each.given for each in evidence.answered])
        found["jensen_shannon"] = agreement.mean_jensen_shannon(shares)
    return found


def _answering(evidence: Evidence) -> list[CellResult]:
    """Return the cells of `evidence.answered`, in the same order."""
    return [each for each in evidence.complete if any(each.answers is a for a in evidence.answered)]


def _moves(evidence: Evidence) -> np.ndarray | None:
    """Return how far each example's probability or number moves from run to run (examples,)."""
    if len(evidence.answered) < agreement.LEAST_RUNS:
        return None
    return np.asarray(agreement.instability(np.stack([each.given for each in evidence.answered])))


def _instability(evidence: Evidence) -> Figures | None:
    moves = _moves(evidence)
    if moves is None:
        return None
    quantiles = np.quantile(moves, [0.5, 0.9, 1.0])
    names = ("median", "ninth_decile", "largest")
    return {"mean": moves.mean(), **dict(zip(names, quantiles, strict=True))}


def _shakiest(evidence: Evidence) -> list[Figures]:
    """Return the examples that runs differ most on, by their answers and then by their probabilities."""
    moves, predictions = _moves(evidence), evidence.predictions()
    if moves is None:
        return []
    first = evidence.answered[0]
    differ = np.zeros(len(moves))
    if predictions is not None:
        differ = np.asarray(agreement.disagreement_of_examples(predictions))
    ranked = np.lexsort((np.arange(len(moves)), -moves, -differ))[:SHAKIEST]
    return [
        {
            "row": first.rows[i],
            "label": _label(first, i),
            "answers": None if predictions is None else _answers(evidence, i),
            "disagreement": differ[i],
            "instability": moves[i],
        }
        for i in ranked
        if differ[i] > 0 or moves[i] > 0
    ]


def _label(answers: Answers, index: int) -> Any:
    """Return the true answer to an example: a name, names, a number or numbers by name."""
    truth, names = answers.truth[index], answers.names
    if answers.kind == "classification":
        return names[truth]
    if answers.kind == "multi-label":
        return [name for name, flag in zip(names, truth, strict=True) if flag]
    numbers = dict(zip(names, truth.tolist(), strict=True))
    return numbers if len(numbers) > 1 else truth.item()


def _answers(evidence: Evidence, index: int) -> dict[str, int]:
    """Return how many runs gave each answer to an example, the most frequent first."""
    names = np.array(evidence.answered[0].names)
    said = []
    for each in evidence.answered:
        chosen = each.chosen[index]
        said.append(
            str(names[chosen]) if np.ndim(chosen) == 0 else ", ".join(names[chosen]) or "none"
        )
    return {name: said.count(name) for name in sorted(set(said), key=lambda n: (-said.count(n), n))}


def _drift(evidence: Evidence, study: StudyFolder) -> Figures | None:
    """Return how far weights moved, mean and standard deviation over runs, by layer group."""
    looked = (aftermath_of(study.run_of(each.cell)) for each in evidence.complete)
    found = [each for each in looked if "groups" in each]
    if not found:
        return None
    groups = {name: [each["groups"].get(name) for each in found] for name in found[0]["groups"]}
    return {
        "trunk": _mean_sd([each["trunk"] for each in found]),
        "groups": {name: _mean_sd(values) for name, values in groups.items()},
    }


def _mean_sd(values: list[float | None]) -> Figures | None:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    return {"mean": known.mean(), "sd": known.std(ddof=1) if len(known) > 1 else math.nan}


def _cka(evidence: Evidence, study: StudyFolder) -> Figures | None:
    """Compare what enters the last layer, on the first test examples, of each two runs."""
    features = [read_features(study.run_of(each.cell)) for each in evidence.complete]
    known = [each for each in features if each is not None]
    pairs = list(itertools.islice(itertools.combinations(known, 2), MOST_PAIRS))
    values = [linear_cka(one, two) for one, two in pairs if len(one) == len(two)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return {
        "mean": np.mean(finite),
        "least": min(finite),
        "pairs": len(finite),
        "examples": len(known[0]),
        "features": known[0].shape[1],
    }


def plain(value: Any) -> Any:
    """Return what JSON can write: numbers of NumPy become plain ones, and those that are none None."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
