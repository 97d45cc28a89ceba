"""Rules on how training moved: losses, gradients and updates, step by step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft_engine.diagnosis import remedies as r
from sft_engine.diagnosis.evidence import updates_of
from sft_engine.diagnosis.finding import Finding, Level
from sft_engine.diagnosis.statistics import has_learned

if TYPE_CHECKING:
    from sft_engine.diagnosis.evidence import Evidence, Record

SPIKE = 2.0
"""A window's loss, in units of the loss at the begin, that is a spike."""
AWAY = 10.0
"""... and so many deviations (by the median) above the records before."""
GRADIENT_SPIKE = 20.0
"""A gradient norm, in units of the largest of the first records, that is a spike."""
LARGE_UPDATE = 0.05
"""Relative update of a step above which a learning rate may be too high; 1e-3 is usual."""
HUGE_UPDATE = 0.2
"""... above which a few steps leave nothing of the weights, whatever comes of it."""
ODD_UPDATE = 0.5
"""... that is odd in any single step."""
STILL = 0.005
"""Relative distance from the start under which the weights have not moved."""
FALLEN = 0.9
"""Share of the first loss above which training has not lowered it."""
RISEN = 1.1
"""Share of the first loss, or of the loss of a constant answer, above which it has made it worse."""
GROWN, EXPLODED = 5.0, 20.0
"""Growth of the weights of a layer group."""
SKIPPED, MANY_SKIPPED = 0.01, 0.1
"""Shares of steps that were not taken."""
BEFORE = 5
"""Records that a spike is compared with, at least."""
SETTLED = 0.25
"""Share of the run after which the learning rate is judged."""


def not_finite(e: Evidence) -> Iterator[Finding]:
    """NaN or infinity in the loss, the gradient or the predictions; less bad if the run got over it."""
    broken = [
        x for x in e.train if not (math.isfinite(x["loss"]) and math.isfinite(x["grad_norm"]))
    ]
    if broken:
        step = int(broken[0]["step"])
        evidence = (
            f"Loss {broken[0]['loss']:g} and gradient norm {broken[0]['grad_norm']:g} at step {step}"
            + (f", learning rate {broken[0]['lr']:.3g}." if "lr" in broken[0] else ".")
        )
        remedies = r.kept(
            r.lower_lr(e), r.warm_up(e), r.clip(e), r.spike_guard(e), r.full_precision(e)
        )
        yield Finding("not-finite", _after_not_finite(e, broken), evidence, step, remedies)
        return
    nan = next((x for x in e.looks if x.get("broken")), None)
    if nan is not None:
        evidence = (
            f"{nan['broken']} of {nan['examples']} predictions are NaN at step {nan['step']}."
        )
        remedies = r.kept(r.lower_lr(e), r.full_precision(e))
        yield Finding("not-finite", "serious", evidence, int(nan["step"]), remedies)


def _after_not_finite(e: Evidence, broken: Sequence[Record]) -> Level:
    """Say how bad it is: fp16 finds its loss scale by overflows, and a component may skip such steps."""
    if e.failure or broken[-1] is e.train[-1]:
        return "serious"
    return "info" if all(math.isfinite(x["loss"]) for x in broken) else "warning"


def learning_rate_too_high(e: Evidence) -> Iterator[Finding]:
    """Large updates, and a training loss that they did not lower; or updates that leave nothing."""
    if e.progress < SETTLED or not len(e.updates) or not e.train:
        return
    update = e.update
    worse = e.end_loss > RISEN * e.start_loss or not math.isfinite(e.end_loss)
    useless = e.end_loss > FALLEN * e.start_loss and not has_learned(e.look)
    if not (update > HUGE_UPDATE or (update > LARGE_UPDATE and (worse or useless))):
        return
    level: Level = "warning" if has_learned(e.look) and not worse else "serious"
    evidence = (
        f"A step changes the weights of a layer group by {update:.1%} of their size or more in a tenth "
        f"of the steps (about 0.1% is usual), and the training loss went from {e.start_loss:.3g} to {e.end_loss:.3g}."
    )
    factor = 0.01 if update > HUGE_UPDATE else 0.1
    remedies = r.kept(r.lower_lr(e, factor), r.warm_up(e), r.decay(e), r.clip(e))
    yield Finding("learning-rate-too-high", level, evidence, _first_large(e), remedies)


def _first_large(e: Evidence) -> int | None:
    return next(
        (int(x["step"]) for x in e.train if max(updates_of(x).values(), default=0) > LARGE_UPDATE),
        None,
    )


def learning_rate_too_low(e: Evidence) -> Iterator[Finding]:
    """Weights where they began, and a loss that has hardly fallen."""
    drift = e.look.get("drift") or {}
    if not e.ended or not e.train or not drift:
        return
    far = max(drift.values())
    if far > STILL or not e.end_loss > FALLEN * e.start_loss:
        return
    if math.isfinite(e.chance_loss) and e.end_loss < FALLEN * e.chance_loss:
        return  # good from the start
    level: Level = "warning" if has_learned(e.look) else "serious"
    evidence = (
        f"The weights are {far:.2%} of their size away from the start (no layer group more), a step moves "
        f"them by {e.update:.1e}, and the training loss went from {e.start_loss:.3g} to {e.end_loss:.3g}."
    )
    factor = 10.0 if far > STILL / 10 else 100.0
    remedies = r.kept(r.raise_lr(e, factor), r.train_longer(e), r.thaw(e))
    yield Finding("learning-rate-too-low", level, evidence, e.step, remedies)


# --- spikes ---------------------------------------------------------------------------------------


def loss_spikes(e: Evidence) -> Iterator[Finding]:
    """Windows whose loss is far above both the records before and the loss of the begin."""
    spikes = _spikes(e)
    if not spikes:
        return
    first, worst = spikes[0], max(spikes, key=lambda x: float(x["loss_max"]))
    after = [float(x["loss"]) for x in e.train if x["step"] > worst["step"]]
    back = bool(after) and float(np.median(after[-BEFORE:])) < SPIKE * e.start_loss
    level: Level = "warning" if back else "serious"
    if not after and e.progress < 1:
        level = "warning"  # whether it comes back is not known yet
    evidence = (
        f"The loss of a window rose to {worst['loss_max']:.3g} at step {worst['step']}, "
        f"{worst['loss_max'] / e.start_loss:.1f} times that of the begin; "
        f"{len(spikes)} record{'s' if len(spikes) > 1 else ''} with such a spike, "
        + ("and it came back." if back else "and it has not come back.")
    )
    remedies = r.kept(r.warm_up(e), r.clip(e), r.lower_lr(e, 0.3), r.spike_guard(e))
    yield Finding("loss-spikes", level, evidence, int(first["step"]), remedies)


def _spikes(e: Evidence) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for index, record in enumerate(e.train):
        peak = float(record.get("loss_max", record["loss"]))
        before = e.losses[max(0, index - 4 * BEFORE) : index]
        before = before[np.isfinite(before)]
        if len(before) < BEFORE or not math.isfinite(peak):
            continue
        middle = float(np.median(before))
        deviation = 1.4826 * float(np.median(np.abs(before - middle)))
        if peak > max(SPIKE * e.start_loss, middle + AWAY * deviation) > 0:
            found.append({"step": record["step"], "loss_max": peak})
    return found


def gradient_spikes(e: Evidence) -> Iterator[Finding]:
    """Gradients far larger than those of the begin."""
    norms = np.array([float(x.get("grad_norm_max", x["grad_norm"])) for x in e.train])
    if len(norms) <= BEFORE:
        return
    usual = float(np.max(norms[:BEFORE]))
    high = np.flatnonzero(norms > GRADIENT_SPIKE * usual)
    if not len(high) or not usual or not math.isfinite(usual):
        return
    table = e.recipe.get("train", {})
    clipped = float(table.get("clip_norm", 1.0)) > 0
    worst = int(high[np.argmax(norms[high])])
    evidence = (
        f"The gradient norm rose to {norms[worst]:.3g} at step {e.train[worst]['step']}, at most "
        f"{usual:.3g} in the first {BEFORE} records; "
        + ("it is clipped." if clipped else "it is not clipped.")
    )
    level: Level = "info" if clipped else "warning"
    remedies = r.kept(r.clip(e), r.warm_up(e), r.spike_guard(e), r.lower_lr(e, 0.3))
    yield Finding("gradient-spikes", level, evidence, int(e.train[high[0]]["step"]), remedies)


def update_anomaly(e: Evidence) -> Iterator[Finding]:
    """Single steps that change a layer group by half of its size."""
    large = [
        (int(x["step"]), name, value)
        for x in e.train
        for name, value in updates_of(x).items()
        if value > ODD_UPDATE
    ]
    if not large:
        return
    step, name, value = max(large, key=lambda x: x[2])
    evidence = (
        f"Step {step} changed the layer group {name} by {value:.0%} of its size; "
        f"{len(large)} such updates were measured."
    )
    remedies = r.kept(r.warm_up(e), r.lower_lr(e), r.clip(e))
    yield Finding("update-anomaly", "warning", evidence, large[0][0], remedies)


def exploding_weights(e: Evidence) -> Iterator[Finding]:
    """Weights many times as large as at the start."""
    for look in e.looks:
        growth = {k: v for k, v in (look.get("growth") or {}).items() if not v <= GROWN}
        if growth:
            name = max(growth, key=lambda k: growth[k])
            worst = max((x.get("growth") or {}).get(name, 0.0) for x in e.looks)
            level: Level = "serious" if worst > EXPLODED or not has_learned(e.look) else "warning"
            evidence = (
                f"The weights of the layer group {name} are {growth[name]:.3g} times as large as at the "
                f"start at step {look['step']}, {worst:.3g} times at most."
            )
            remedies = r.kept(r.lower_lr(e), r.l2_sp(e), r.weight_decay(e), r.warm_up(e))
            yield Finding("exploding-weights", level, evidence, int(look["step"]), remedies)
            return


def judged_steps(e: Evidence) -> Iterator[Finding]:
    """Steps that were skipped or taken back."""
    if not e.verdicts:
        return
    share = len(e.verdicts) / max(e.step, 1)
    level: Level = "info"
    if share > SKIPPED:
        level = "serious" if share > MANY_SKIPPED else "warning"
    kinds = Counter(str(x["action"]) for x in e.verdicts)
    counted = ", ".join(f"{action} {number}" for action, number in kinds.most_common())
    evidence = (
        f"{len(e.verdicts)} of {e.step} steps were not taken ({counted} times); the first: "
        f"{e.verdicts[0]['reason']}."
    )
    remedies = r.kept(r.lower_lr(e, 0.3), r.warm_up(e), r.larger_windows(e))
    yield Finding("judged-steps", level, evidence, int(e.verdicts[0]["step"]), remedies)
