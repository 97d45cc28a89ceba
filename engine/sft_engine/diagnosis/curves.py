"""Rules on the curves of validation and training: over- and underfitting, and whether they settle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft_engine.diagnosis import remedies as r
from sft_engine.diagnosis.finding import Finding, Level, Remedy
from sft_engine.diagnosis.statistics import CHANCE, gap_error, has_learned

if TYPE_CHECKING:
    from sft_engine.diagnosis.evidence import Evidence, Record

RISE, DOUBLED = 0.1, 1.0
"""Rise of the validation loss over its minimum, as a share of it (the first also of the loss of a constant
answer): overfitting; serious."""
GAP = 0.15
"""Difference of accuracies between training sample and validation that is too much."""
UNEXPLAINED = 0.92
"""Share of the loss of a constant answer that a model which has learned something is below."""
SWING = 0.25
"""Median change of the validation loss between two looks, as a share of it, in oscillation."""
TURNS = 0.6
"""Share of the looks at which an oscillating loss turns."""
FALLING = 0.05
"""Fall of the validation loss at the last look, as a share of it, that promises more."""
LOOKS, MANY_LOOKS = 3, 6


def overfitting(e: Evidence) -> Iterator[Finding]:
    """Validation gets worse while training gets better, or is far from it at the end."""
    looks = [x for x in e.looks if math.isfinite(x.get("loss", math.nan))]
    if len(looks) >= LOOKS:
        found = _risen(e, looks)
        if found is not None:
            yield found
            return
    if e.ended and looks:
        yield from _apart(e, looks[-1])


def _risen(e: Evidence, looks: Sequence[Record]) -> Finding | None:
    loss = np.array([float(x["loss"]) for x in looks])
    onset = int(loss.argmin())
    rise = float(loss[-1] - loss[onset])
    later = loss[onset + 1 :]
    error = float(looks[-1].get("loss_error", 0.0) or 0.0)
    least = max(RISE * loss[onset], RISE * _known(e.chance_loss), error)
    if len(later) < 2 or rise <= least or min(later[-2:]) <= loss[onset]:  # noqa: PLR2004
        return None
    train = [_train_loss(e, x) for x in (looks[onset], looks[-1])]
    if not train[1] < min(max(train[0], 1e-12) * (1 + RISE), loss[-1]):
        return None  # training got worse too: that is something else
    fell = _fall(looks)
    level: Level = "serious" if rise > DOUBLED * loss[onset] or fell else "warning"
    gap, before = loss[-1] - train[1], loss[onset] - train[0]
    slope = _slope(looks[onset:], loss[onset:] - [_train_loss(e, x) for x in looks[onset:]])
    evidence = (
        f"The validation loss was lowest at step {looks[onset]['step']} ({loss[onset]:.3g}) and is "
        f"{loss[-1]:.3g} at step {looks[-1]['step']}, while the training loss went from {train[0]:.3g} to "
        f"{train[1]:.3g}: the gap grew from {before:.3g} to {gap:.3g}, by {slope:.2g} an epoch{fell}."
    )
    return Finding("overfitting", level, evidence, int(looks[onset]["step"]), _remedies(e))


def _known(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _fall(looks: Sequence[Record]) -> str:
    """Say by how much the accuracy has fallen from its best, if by more than chance."""
    known = [x for x in looks if "accuracy" in x]
    if not known:
        return ""
    best = max(known, key=lambda x: float(x["accuracy"]))
    fall = float(best["accuracy"]) - float(known[-1]["accuracy"])
    if not fall > CHANCE * gap_error(best, known[-1], "accuracy"):
        return ""
    return f"; accuracy fell by {fall:.3f} from its best at step {best['step']}"


def _train_loss(e: Evidence, look: Record) -> float:
    """Return the loss of the training sample, or where there is none that of training at that step."""
    sample = look.get("train") or {}
    if "loss" in sample:
        return float(sample["loss"])
    before = [float(x["loss"]) for x in e.train if x["step"] <= look["step"]]
    return before[-1] if before else math.nan


def _slope(looks: Sequence[Record], gaps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    epochs = np.array([float(x.get("epoch", x["step"])) for x in looks])
    return float(np.polyfit(epochs, gaps, 1)[0]) if len(looks) > 1 else math.nan


def _apart(e: Evidence, look: Record) -> Iterator[Finding]:
    """Compare accuracies at the end: what was learned by heart, whenever that began."""
    sample = look.get("train") or {}
    if "accuracy" not in sample or "accuracy" not in look:
        return
    gap = float(sample["accuracy"]) - float(look["accuracy"])
    if gap > max(GAP, CHANCE * gap_error(sample, look, "accuracy")):
        evidence = (
            f"At step {look['step']} the accuracy is {sample['accuracy']:.3f} on {sample['examples']} training "
            f"examples and {look['accuracy']:.3f} on {look['examples']} of validation."
        )
        yield Finding("overfitting", "warning", evidence, int(look["step"]), _remedies(e))


def _remedies(e: Evidence) -> tuple[Remedy, ...]:
    return r.kept(
        r.early_stopping(e),
        r.l2_sp(e),
        r.freeze_lower(e),
        r.dropout(e),
        r.more_data(e),
        r.weight_decay(e),
        r.label_smoothing(e),
        r.best_weights(e),
        r.layer_decay(e),
    )


def underfitting(e: Evidence) -> Iterator[Finding]:
    """A training loss at the end that a constant answer would have, too."""
    if not e.ended or not math.isfinite(e.chance_loss) or not e.looks:
        return
    look = e.look
    loss = _train_loss(e, look)
    if not loss > UNEXPLAINED * e.chance_loss:
        return
    level: Level = "warning" if has_learned(look) else "serious"
    score = f", accuracy {look['accuracy']:.3f}" if "accuracy" in look else ""
    evidence = (
        f"The loss on training examples is {loss:.3g} at step {look['step']}; always giving the same answer "
        f"has {e.chance_loss:.3g}. On validation: loss {look['loss']:.3g}{score}."
    )
    remedies = r.kept(r.train_longer(e, 4), r.raise_lr(e, 3.0), r.thaw(e), r.another_seed(e))
    yield Finding("underfitting", level, evidence, int(look["step"]), remedies)


def oscillating_validation(e: Evidence) -> Iterator[Finding]:
    """A validation loss that goes up and down by much, look after look."""
    looks = [x for x in e.looks if math.isfinite(x.get("loss", math.nan))]
    if not e.ended or len(looks) < MANY_LOOKS:
        return
    loss = np.array([float(x["loss"]) for x in looks])
    change = np.diff(loss)
    turns = int((change[1:] * change[:-1] < 0).sum())
    size, level_of = float(np.median(np.abs(change))), float(np.median(loss))
    errors = [float(x.get("loss_error", 0.0) or 0.0) for x in looks]
    # Near zero any change is a large share: it must matter beside what a constant answer loses, too.
    least = max(SWING * level_of, RISE * _known(e.chance_loss), float(np.median(errors)))
    if turns < TURNS * (len(change) - 1) or size <= least:
        return
    evidence = (
        f"The validation loss turned at {turns} of {len(change) - 1} looks and changed by {size:.3g} from one "
        f"to the next (median), around {level_of:.3g}."
    )
    remedies = r.kept(r.lower_lr(e, 0.3), r.decay(e), r.larger_windows(e), r.warm_up(e))
    yield Finding("oscillating-validation", "warning", evidence, int(looks[0]["step"]), remedies)


def not_converged(e: Evidence) -> Iterator[Finding]:
    """A validation loss that is still falling at the end."""
    looks = [x for x in e.looks if math.isfinite(x.get("loss", math.nan))]
    if not e.ended or len(looks) < LOOKS:
        return
    loss = [float(x["loss"]) for x in looks]
    fall = loss[-2] - loss[-1]
    error = float(looks[-1].get("loss_error", 0.0) or 0.0)
    if loss[-1] > min(loss) or fall <= max(FALLING * loss[-2], error / 2):
        return
    evidence = (
        f"The validation loss fell from {loss[-2]:.3g} to {loss[-1]:.3g} between the last two looks, and was "
        "never lower."
    )
    yield Finding(
        "not-converged", "info", evidence, int(looks[-1]["step"]), r.kept(r.train_longer(e))
    )
