"""Rules on the data: leaks, labels that are written into the inputs, labels that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sft_engine.diagnosis import remedies as r
from sft_engine.diagnosis.finding import Finding, Level, Remedy
from sft_engine.diagnosis.statistics import has_learned
from sft_engine.significance.intervals import wilson

if TYPE_CHECKING:
    from sft_engine.diagnosis.evidence import Evidence, Record

SAME = 0.05
"""Share of different inputs in training below which there is nothing to learn from."""
FEW = 10
"""Rows below which a share says nothing."""
LEAK, LARGE_LEAK = 0.02, 0.1
"""Shares of the held-out rows that are in training too."""
LEAKED = 3
"""... and how many there must be for more than a note."""
PERFECT = 0.999
PERFECT_OF = 50
"""Accuracy that is suspicious within the first epoch, and of how many examples."""
EARLY = 1.0
"""Epochs."""
NOISY = 0.1
"""Share of suspects among held-out labels."""
JUDGED = 100
"""Held-out examples below which labels are not judged."""
FLOOR = 0.05
"""Errors among the surer half that are too many, at the lower end of the interval ..."""
FLAT = 0.6
"""... and their share of the errors in the other half: wrong labels are as frequent where a model is sure."""


def constant_inputs(e: Evidence) -> Iterator[Finding]:
    """Training inputs that are all the same."""
    share, rows = e.start.get("distinct"), (e.start.get("sizes") or {}).get("train", 0)
    if share is None or rows < FEW or share > max(SAME, 1.5 / rows):
        return
    evidence = f"Only {max(1, round(share * rows))} of {rows} training inputs are different."
    advice = r.clean(
        "Look at the column that is read: it may be empty, a constant, or not the input."
    )
    columns = Remedy(
        "Name the column that holds the input.", f'[data.columns]\n{_role(e)} = "{_role(e)}"\n'
    )
    yield Finding("constant-inputs", "serious", evidence, 0, (advice, columns))


def _role(e: Evidence) -> str:
    task = str(e.recipe.get("task", {}).get("use", "text"))
    return {"tabular": "features"}.get(task.partition("-")[0], task.partition("-")[0])


def leakage(e: Evidence) -> Iterator[Finding]:
    """Held-out rows that are in training too, or nearly so."""
    sizes = e.start.get("sizes") or {}
    shares = {
        name: (found["exact"] + found["near"]) / max(sizes.get(name, 0), 1)
        for name, found in (e.start.get("overlap") or {}).items()
        if found["exact"] + found["near"]
    }
    if not shares:
        return
    worst = max(shares, key=lambda name: shares[name])
    found = e.start["overlap"][worst]
    level: Level = "info"
    if shares[worst] >= LEAK and found["exact"] + found["near"] >= LEAKED:
        level = "serious" if shares[worst] >= LARGE_LEAK else "warning"
    evidence = (
        f"{found['exact']} of {sizes[worst]} rows of the split `{worst}` have an input that is in training "
        f"too, and {found['near']} one that begins or ends like one there ({shares[worst]:.1%}; rows "
        f"{', '.join(map(str, found['rows']))}): metrics are partly memory."
    )
    yield Finding("leakage", level, evidence, 0, (r.own_splits(tuple(shares)),))


def label_in_input(e: Evidence) -> Iterator[Finding]:
    """A word or a column that says what the label is."""
    tells = e.start.get("tells") or ()
    if not tells:
        return
    first = tells[0]
    if "word" in first:
        what = (
            f"the word “{first['word']}” is in {first['share']:.0%} of the training texts of the class "
            f"`{e.name_of(first['class'])}` and in hardly any other"
        )
    else:
        what = f"column {first['column']} of the table has one value for each class"
    known = e.judged.get("accuracy")
    level: Level = "serious" if known is None or known >= 0.95 else "warning"  # noqa: PLR2004
    score = "" if known is None else f"; held-out accuracy {known:.3f}"
    evidence = f"{len(tells)} part{'s' if len(tells) > 1 else ''} of the input tell the label: {what}{score}."
    advice = r.clean(
        "Take it out of the input (Kaufman et al. 2012), unless it will be there when the model is used."
    )
    yield Finding("label-in-input", level, evidence, 0, (advice,))


def perfect_validation(e: Evidence) -> Iterator[Finding]:
    """No error within the first epoch."""
    if not e.looks:
        return
    look = e.looks[0]
    perfect = look.get("accuracy", 0.0) >= PERFECT and look.get("examples", 0) >= PERFECT_OF
    if not perfect or float(look.get("epoch", 0.0)) > EARLY:
        return
    evidence = (
        f"All of {look['examples']} validation examples are right at step {look['step']}, in the first epoch: "
        "the task is easy, or the answer is in the input."
    )
    advice = r.clean(
        "Look for what tells the label: `sft-engine predict` on rows without the suspect part."
    )
    yield Finding("perfect-validation", "info", evidence, int(look["step"]), (advice,))


def label_noise(e: Evidence) -> Iterator[Finding]:
    """Held-out labels that a model contradicts where it is sure."""
    looks = [x for x in (e.last, e.look) if x.get("noise") and x["examples"] >= JUDGED]
    if not e.ended or not looks:
        return
    look = looks[0]
    noise, number = look["noise"], int(look["examples"])
    share = noise["suspects"] / number
    if not noise["suspects"] or not has_learned(look):
        return
    where = "test" if look is e.last else "validation"
    level: Level = "warning" if share >= NOISY and _is_flat(noise, number) else "info"
    rows = ", ".join(
        f"{row} (`{e.name_of(label)}`, rather `{e.name_of(other)}`)"
        for row, label, other in list(
            zip(noise["rows"], noise["labels"], noise["predicted"], strict=True)
        )[:3]
    )
    evidence = (
        f"{noise['suspects']} of {number} labels of the split `{where}` ({share:.1%}) are contradicted by a "
        f"confident prediction, first rows {rows}; of the surer half of the predictions "
        f"{noise['sure_error']:.1%} are wrong, of the other {noise['unsure_error']:.1%}."
    )
    advice = r.clean(
        "Read the rows that are named, and correct their labels (Northcutt et al. 2021)."
    )
    remedies = r.kept(advice, r.label_smoothing(e), r.early_stopping(e), r.more_data(e))
    yield Finding("label-noise", level, evidence, int(look["step"]), remedies)


def _is_flat(noise: Record, number: int) -> bool:
    """Say whether errors are about as frequent where the model is sure as where it is not."""
    half = (number + 1) // 2
    low = wilson(round(noise["sure_error"] * half), half).low
    return low > FLOOR and noise["sure_error"] > FLAT * noise["unsure_error"]
