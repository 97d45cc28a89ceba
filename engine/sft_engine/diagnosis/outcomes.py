"""Rules on what the model gives: outputs that do not depend on the input, classes that it never predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sft_engine.diagnosis import remedies as r
from sft_engine.diagnosis.evidence import Evidence, Record, gradients_of
from sft_engine.diagnosis.finding import Finding, Level
from sft_engine.diagnosis.statistics import CHANCE, gap_error, has_learned
from sft_engine.significance.intervals import wilson

CONSTANT = 1e-3
"""Spread of the logits over examples (of a regression: over that of the targets) that is none."""
DEAD = 1e-9
"""Gradient norm of the head, in units of the largest layer group's, that is none."""
ONE_CLASS = 0.95
"""Share of the predictions that one class has when they have collapsed ..."""
UNLIKE = 0.2
"""... and by which this is more than its share of the labels."""
FEW = 20
"""Examples below which predictions are not counted."""
SMALL = 5
"""Examples of a class below which its recall says nothing."""
NEGLECTED = 0.1
"""Recall of a neglected class."""
GOOD = 0.8
"""Accuracy that hides a neglected class."""
FAR = 0.5
"""Relative distance from the pretrained weights that is worth knowing."""
FORGOTTEN, MUCH_FORGOTTEN = 0.02, 0.1
"""Loss of accuracy on the anchor set."""
SETTLED = 0.25
"""Share of the run after which predictions are judged: in warm-up they may all be of one class."""
POINTS = 3


def constant_outputs(e: Evidence) -> Iterator[Finding]:
    """The same output for every example."""
    looks = _settled(e)
    if not looks or not all(map(_is_constant, looks[-2:])):
        return
    first = next(x for x in looks if _is_constant(x))
    look = looks[-1]
    evidence = (
        f"The outputs of {look['examples']} different examples differ by {look['spread']:.1e} (standard "
        f"deviation, at step {look['step']})."
    )
    remedies = r.kept(r.lower_lr(e), r.warm_up(e), r.another_seed(e), r.train_head(e))
    yield Finding("constant-outputs", "serious", evidence, int(first["step"]), remedies)


def _is_constant(look: Record) -> bool:
    unit = float(look.get("label_spread", 1.0)) or 1.0
    return "spread" in look and look["spread"] < CONSTANT * unit and look["examples"] > 1


def _settled(e: Evidence) -> Sequence[Record]:
    """Return the looks to judge predictions by; none as long as they may still be those of a warm-up."""
    if e.progress < SETTLED or (not e.ended and len(e.looks) < 2):  # noqa: PLR2004  (one may be chance)
        return ()
    return e.looks or ([e.last] if e.last else [])


def dead_head(e: Evidence) -> Iterator[Finding]:
    """A head that no gradient reaches, or that is frozen."""
    groups: Sequence[str] = e.start.get("layer_groups", ())
    measured = [(int(x["step"]), gradients_of(x)) for x in e.train]
    measured = [(step, norms) for step, norms in measured if any(norms.values())]
    if len(groups) < 2 or len(measured) < POINTS or e.progress < SETTLED:  # noqa: PLR2004
        return
    head = groups[-1]
    dead = [step for step, norms in measured if norms.get(head, 0.0) <= DEAD * max(norms.values())]
    if measured[-1][0] not in dead or len(dead) < max(POINTS, len(measured) / 2):
        return
    frozen = not any(head in norms for _, norms in measured)
    what = "is frozen in every step" if frozen else "has no gradient"
    level: Level = "warning" if has_learned(e.judged) else "serious"
    largest = max(measured[-1][1], key=lambda k: measured[-1][1][k])
    evidence = (
        f"The head `{head}` {what} that was measured from step {dead[0]} on ({len(dead)} of {len(measured)}), "
        f"while `{largest}` has a norm of {measured[-1][1][largest]:.2g} at step {measured[-1][0]}."
    )
    remedies = r.kept(r.nothing_frozen(e), r.train_head(e), r.another_seed(e))
    yield Finding("dead-head", level, evidence, dead[0], remedies)


def collapsed_predictions(e: Evidence) -> Iterator[Finding]:
    """One class for everything, though the labels are of others too."""
    looks = _settled(e)
    if not looks or not all(_collapsed(x) for x in looks[-2:]):
        return
    first = next(x for x in looks if _collapsed(x))
    look = looks[-1]
    index, share, true = _collapsed(look) or (0, 0.0, 0.0)
    evidence = (
        f"{share:.0%} of {look['examples']} predictions at step {look['step']} are `{e.name_of(index)}`, which "
        f"is {true:.0%} of the labels."
    )
    remedies = r.kept(
        r.lower_lr(e), r.warm_up(e), r.another_seed(e), r.train_longer(e, 4), r.train_head(e)
    )
    yield Finding("collapsed-predictions", "serious", evidence, int(first["step"]), remedies)


def _collapsed(look: Record) -> tuple[int, float, float] | None:
    """Return the class that all predictions are of, its share of them and of the labels."""
    predicted, labels = look.get("predicted"), look.get("labels")
    if not predicted or not labels or sum(predicted) != sum(labels) or sum(labels) < FEW:
        return None
    top = int(np.argmax(predicted))
    share, true = predicted[top] / sum(predicted), labels[top] / sum(labels)
    return (top, share, true) if share >= ONE_CLASS and share - true >= UNLIKE else None


def class_neglect(e: Evidence) -> Iterator[Finding]:
    """Classes that are hardly ever recognised."""
    look = e.judged
    labels, hits = look.get("labels"), look.get("hits")
    if not e.ended or not labels or not hits or len(labels) < 2:  # noqa: PLR2004
        return
    if not has_learned(look) and max(labels) < GOOD * sum(labels):
        return  # it neglects all of them
    neglected = [
        k
        for k, (number, right) in enumerate(zip(labels, hits, strict=True))
        if number >= SMALL and right <= NEGLECTED * number and wilson(right, number).high < GOOD
    ]
    if not neglected:
        return
    accuracy = float(look.get("accuracy", 0.0))
    none = all(hits[k] == 0 for k in neglected)
    level: Level = "serious" if accuracy >= GOOD and none else "warning"
    named = ", ".join(f"`{e.name_of(k)}` {hits[k]} of {labels[k]}" for k in neglected[:5])
    evidence = (
        f"{len(neglected)} of {len(labels)} classes are hardly recognised (right: {named}), while the accuracy "
        f"is {accuracy:.3f}; the largest class has {max(labels) / max(sum(labels), 1):.0%} of the labels."
    )
    remedies = r.kept(
        r.class_weights(e), r.balanced_draws(e), r.logit_adjustment(e), r.select_by_f1(e)
    )
    yield Finding("class-neglect", level, evidence, int(look["step"]), remedies)


# --- what was known before ------------------------------------------------------------------------


def forgetting(e: Evidence) -> Iterator[Finding]:
    """Accuracy on the anchor set that was there and is gone."""
    known = [x for x in e.anchors if "accuracy" in x]
    if len(known) < 2:  # noqa: PLR2004
        return
    best, now = max(known, key=lambda x: float(x["accuracy"])), known[-1]
    fall = float(best["accuracy"]) - float(now["accuracy"])
    if not fall > max(FORGOTTEN, CHANCE * gap_error(best, now, "accuracy")):
        return
    level: Level = "serious" if fall > MUCH_FORGOTTEN else "warning"
    evidence = (
        f"On the anchor set `{now['name']}` the accuracy fell from {best['accuracy']:.3f} at step "
        f"{best['step']} to {now['accuracy']:.3f} at step {now['step']}; {now['churn']:.0%} of its predictions "
        "are others than at the start."
    )
    remedies = r.kept(
        r.l2_sp(e), r.ewc(e), r.layer_decay(e), r.freeze_lower(e), r.wise_ft(e), r.lower_lr(e, 0.3)
    )
    yield Finding("forgetting", level, evidence, int(now["step"]), remedies)


def drift(e: Evidence) -> Iterator[Finding]:
    """Pretrained weights that are far from where they were."""
    groups: Sequence[str] = e.start.get("layer_groups", ())
    far = {
        name: value
        for name, value in (e.look.get("drift") or {}).items()
        if groups and name != groups[-1] and value > FAR
    }
    if not far or not _is_pretrained(e):
        return
    worst = max(far, key=lambda k: far[k])
    evidence = (
        f"{len(far)} of {len(groups)} layer groups have moved by more than {FAR:.0%} of their size from the "
        f"start, `{worst}` by {far[worst]:.0%}: little of what was pretrained is left in them."
    )
    remedies = r.kept(r.l2_sp(e), r.layer_decay(e), r.lower_lr(e, 0.3), r.freeze_lower(e))
    yield Finding("drift", "info", evidence, int(e.look["step"]), remedies)


def _is_pretrained(e: Evidence) -> bool:
    backbone = e.recipe.get("backbone", {})
    return backbone.get("use") != "mlp" and backbone.get("pretrained", True) is not False
