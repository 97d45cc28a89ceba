"""What to try, as lines of a recipe; `docs/diagnosis.md` has the sources in full.

Each function looks at the recipe: numbers are those of the run, moved the way that helps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft_engine.diagnosis.finding import Remedy

if TYPE_CHECKING:
    from sft_engine.diagnosis.evidence import Evidence

DEFAULT_LR = 5e-5
WARM_UP = 0.1
DROPOUT = 0.2


def kept(*remedies: Remedy | None) -> tuple[Remedy, ...]:
    """Leave out remedies that a recipe has already."""
    return tuple(remedy for remedy in remedies if remedy is not None)


def _table(evidence: Evidence, name: str) -> Mapping[str, Any]:
    table = evidence.recipe.get(name, {})
    return table if isinstance(table, Mapping) else {}


def _component(
    evidence: Evidence, kind: str, use: str, why: str, options: str = ""
) -> Remedy | None:
    """Return a remedy that adds a component of a list such as `[[regularizer]]`."""
    if evidence.has(kind, use):
        return None
    return Remedy(why, f'[[{kind}]]\nuse = "{use}"\n{options}')


# --- the learning rate ----------------------------------------------------------------------------


def scale_lr(evidence: Evidence, factor: float, why: str) -> Remedy | None:
    """Multiply the learning rate; None if phases have their own."""
    phases = evidence.recipe.get("phase", ())
    if any("lr" in phase for phase in phases):
        return None
    lr = float(_table(evidence, "optimizer").get("lr", DEFAULT_LR)) * factor
    return Remedy(why, f"[optimizer]\nlr = {lr:.3g}\n")


def lower_lr(evidence: Evidence, factor: float = 0.1) -> Remedy | None:
    """Lower the learning rate."""
    why = f"A learning rate of {factor:g} times this one; `sft-engine lr-find` measures where it may lie"
    return scale_lr(evidence, factor, f"{why} (Smith 2017).")


def raise_lr(evidence: Evidence, factor: float = 10.0) -> Remedy | None:
    """Raise the learning rate."""
    why = f"A learning rate of {factor:g} times this one; `sft-engine lr-find` measures where it may lie"
    return scale_lr(evidence, factor, f"{why} (Smith 2017).")


def warm_up(evidence: Evidence) -> Remedy | None:
    """Begin with small steps."""
    schedule = _table(evidence, "schedule")
    if float(schedule.get("warmup", 0.0) or 0.0) >= WARM_UP:
        return None
    use = "" if "warmup" in schedule else 'use = "linear"\n'
    return Remedy(
        "Warm-up over the first tenth, until Adam's averages are filled (Mosbach et al. 2021; Goyal et al. "
        "2017).",
        f"[schedule]\n{use}warmup = {WARM_UP}\n",
    )


def decay(evidence: Evidence) -> Remedy | None:
    """Let the learning rate fall to zero."""
    if _table(evidence, "schedule").get("use") in ("linear", "cosine", "slanted-triangle"):
        return None
    return Remedy(
        "A learning rate that falls to zero lets the weights settle (Loshchilov and Hutter 2017).",
        f'[schedule]\nuse = "cosine"\nwarmup = {WARM_UP}\n',
    )


def clip(evidence: Evidence) -> Remedy | None:
    """Bound the gradient."""
    limit = float(_table(evidence, "train").get("clip_norm", 1.0))
    if 0 < limit <= 1.0:
        return None
    why = "No single window may move the weights far (Pascanu et al. 2013)."
    return Remedy(why, "[train]\nclip_norm = 1.0\n")


def larger_windows(evidence: Evidence) -> Remedy:
    """Average over more examples."""
    size = 2 * int(_table(evidence, "train").get("batch_size", 32))
    micro = int(_table(evidence, "train").get("micro_batch_size", 0)) or size // 2
    return Remedy(
        "Twice the examples in a step make its gradient less noisy; memory stays as it is.",
        f"[train]\nbatch_size = {size}\nmicro_batch_size = {micro}\n",
    )


def spike_guard(evidence: Evidence) -> Remedy | None:
    """Leave out spikes."""
    why = "Leaves out steps whose gradient is a spike, and puts the weights back after several (Chowdhery et "
    return _component(
        evidence, "regularizer", "spike-guard", why + "al. 2022; plugin sft-regularizers)."
    )


# --- length and capacity --------------------------------------------------------------------------


def train_longer(evidence: Evidence, factor: int = 2) -> Remedy | None:
    """Train longer."""
    if evidence.recipe.get("phase"):
        return None
    train = _table(evidence, "train")
    why = "Small data sets take many passes: 20 epochs instead of 3 on BERT (Mosbach et al. 2021)."
    steps = train.get("steps")
    if steps:
        return Remedy(why, f"[train]\nsteps = {factor * int(steps)}\n")
    return Remedy(why, f"[train]\nepochs = {factor * float(train.get('epochs', 3.0)):g}\n")


def thaw(evidence: Evidence) -> Remedy | None:
    """Let more layers train."""
    if not evidence.recipe.get("freezing"):
        return None
    return Remedy(
        "The head first, then everything: what is frozen now may be what does not fit (Howard and Ruder 2018; "
        "Kumar et al. 2022; plugin sft-freezing).",
        '[freezing]\nuse = "gradual-unfreezing"\nuntil = 0.5\n',
    )


def early_stopping(evidence: Evidence) -> Remedy | None:
    """Stop when validation gets worse."""
    why = "Ends training when validation has stopped improving (Prechelt 1998)."
    return _component(evidence, "extension", "early-stopping", why, "patience = 3\n")


def best_weights(evidence: Evidence) -> Remedy | None:
    """Keep the weights of the best evaluation."""
    if _table(evidence, "checkpoint").get("best", "auto") != "last":
        return None
    why = "Keeps the weights of the best evaluation instead of the last ones."
    return Remedy(why, '[checkpoint]\nbest = "auto"\n')


# --- regularization -------------------------------------------------------------------------------


def l2_sp(evidence: Evidence) -> Remedy | None:
    """Hold the weights near the pretrained ones."""
    why = "L2-SP pulls the weights towards the pretrained ones (Li et al. 2018; plugin sft-regularizers)."
    options = 'alpha = 0.01\nbeta = 0.01\nweight_decay = "off"\n'
    return _component(evidence, "regularizer", "l2-sp", why, options)


def freeze_lower(evidence: Evidence) -> Remedy | None:
    """Train the head first and lower layers later."""
    if evidence.recipe.get("freezing"):
        return None
    return Remedy(
        "The lower layers stay frozen at first: fewer weights can learn the rows by heart (Howard and Ruder "
        "2018; Kumar et al. 2022; plugin sft-freezing).",
        '[freezing]\nuse = "gradual-unfreezing"\nuntil = 0.5\n',
    )


def layer_decay(evidence: Evidence) -> Remedy | None:
    """Smaller steps for lower layers."""
    why = "Smaller learning rates for lower layers keep what they know (Howard and Ruder 2018; plugin "
    return _component(evidence, "extension", "layer-decay", f"{why}sft-freezing).", "decay = 0.9\n")


def dropout(evidence: Evidence) -> Remedy | None:
    """More dropout."""
    why = "More dropout in all layers that have any (Srivastava et al. 2014; plugin sft-regularizers)."
    return _component(evidence, "regularizer", "dropout", why, f"p = {DROPOUT}\n")


def weight_decay(evidence: Evidence) -> Remedy | None:
    """More weight decay."""
    optimizer = _table(evidence, "optimizer")
    now = float(optimizer.get("weight_decay", 0.01))
    if now >= 0.05 or evidence.has("regularizer", "l2-sp"):  # noqa: PLR2004  (timm's usual value)
        return None
    why = "More decoupled weight decay (Loshchilov and Hutter 2019)."
    return Remedy(why, "[optimizer]\nweight_decay = 0.05\n")


AUGMENTATIONS = {
    "text-classification": ("eda", "Synonyms, swapped and deleted words (Wei and Zou 2019; plugin"),
    "text-regression": ("word-dropout", "Deleted words (Iyyer et al. 2015; plugin"),
    "image-classification": (
        "rand-augment",
        "Random changes of pictures (Cubuk et al. 2020; plugin",
    ),
    "tabular-classification": ("mixup", "Averages of two examples (Zhang et al. 2018; plugin"),
    "tabular-regression": ("feature-noise", "Noise on the features (Bishop 1995; plugin"),
    "audio-classification": ("mixup", "Averages of two examples (Zhang et al. 2018; plugin"),
}


def more_data(evidence: Evidence) -> Remedy | None:
    """Augment the data, by what it is."""
    found = AUGMENTATIONS.get(str(_table(evidence, "task").get("use", "")))
    if found is None:
        return None
    use, why = found
    return _component(
        evidence, "augmentation", use, f"{why} sft-augmentations): more data is better still."
    )


def label_smoothing(evidence: Evidence) -> Remedy | None:
    """Targets that are less sure."""
    if evidence.kind != "classification" or _table(evidence, "task").get("label_smoothing"):
        return None
    why = "Targets that are less sure bear wrong labels better (Lukasik et al. 2020)."
    return Remedy(why, "[task]\nlabel_smoothing = 0.1\n")


# --- classes --------------------------------------------------------------------------------------


def class_weights(evidence: Evidence) -> Remedy | None:
    """Count rare classes more."""
    task = _table(evidence, "task")
    if evidence.kind == "regression" or task.get("class_weights", "none") != "none":
        return None
    if evidence.has("extension", "class-weights"):
        return None
    why = (
        "Rare classes count more in the loss, by the inverse of their number (King and Zeng 2001)."
    )
    return Remedy(why, '[task]\nclass_weights = "balanced"\n')


def balanced_draws(evidence: Evidence) -> Remedy | None:
    """Draw rare classes more often."""
    if (
        _table(evidence, "data").get("resample", "none") != "none"
        or evidence.kind != "classification"
    ):
        return None
    why = "Every class is drawn equally often (Buda et al. 2018)."
    return Remedy(why, '[data]\nresample = "balanced"\n')


def logit_adjustment(evidence: Evidence) -> Remedy | None:
    """Correct for class frequencies."""
    if evidence.kind != "classification":
        return None
    why = (
        "Logit adjustment for the class frequencies (Menon et al. 2021; plugin sft-augmentations)."
    )
    return _component(evidence, "extension", "logit-adjustment", why)


def select_by_f1(evidence: Evidence) -> Remedy | None:
    """Select weights by a metric that sees rare classes."""
    if evidence.kind != "classification" or _table(evidence, "checkpoint").get("best") == "f1":
        return None
    return Remedy(
        "Weights selected by macro F1, which sees rare classes.", '[checkpoint]\nbest = "f1"\n'
    )


# --- the start ------------------------------------------------------------------------------------


def train_head(evidence: Evidence) -> Remedy | None:
    """Train the head first."""
    if _table(evidence, "freezing").get("use") == "lp-ft":
        return None
    return Remedy(
        "Linear probing first, then all: the head trains from the first step on (Kumar et al. 2022; plugin "
        "sft-freezing).",
        '[freezing]\nuse = "lp-ft"\n',
    )


def nothing_frozen(evidence: Evidence) -> Remedy | None:
    """Freeze only what is below the head."""
    if not evidence.recipe.get("freezing"):
        return None
    why = "Everything is frozen but the head, which must train (plugin sft-freezing)."
    return Remedy(why, '[freezing]\nuse = "frozen"\nkeep = "head"\n')


def another_seed(evidence: Evidence) -> Remedy:
    """Draw another head."""
    seed = int(evidence.recipe.get("seed", 0)) + 1
    why = "Another seed: some starts fail whatever else is right (Dodge et al. 2020)."
    return Remedy(why, f"seed = {seed}\n")


def full_precision(evidence: Evidence) -> Remedy | None:
    """Compute in single precision."""
    if _table(evidence, "train").get("precision") == "fp32":
        return None
    why = "Single precision rules out that numbers were too large or too small (Micikevicius et al. 2018)."
    return Remedy(why, '[train]\nprecision = "fp32"\n')


# --- forgetting -----------------------------------------------------------------------------------


def ewc(evidence: Evidence) -> Remedy | None:
    """Hold what the start's answers depend on."""
    why = (
        "EWC holds the weights that the start's answers depend on (Kirkpatrick et al. 2017; plugin "
    )
    return _component(evidence, "regularizer", "ewc", f"{why}sft-regularizers).")


def wise_ft(evidence: Evidence) -> Remedy | None:
    """Average start and end."""
    why = "Weights between start and end keep more of both (Wortsman et al. 2022; plugin sft-regularizers)."
    remedy = _component(evidence, "regularizer", "wise-ft", why)
    if remedy is None or _table(evidence, "checkpoint").get("best", "auto") == "last":
        return remedy
    # It replaces the last weights, which must be those that are kept.
    return Remedy(why, f'[checkpoint]\nbest = "last"\n\n{remedy.toml}')


# --- data -----------------------------------------------------------------------------------------


def own_splits(names: tuple[str, ...]) -> Remedy:
    """Draw held-out splits anew, after the duplicates are gone."""
    keys = ", ".join(f'{name} = ""' for name in names)
    return Remedy(
        "Remove the repeated rows from the files; where the source's own splits overlap, draw them from the "
        "cleaned training rows (Lee et al. 2022).",
        f"[data]\nsplits = {{ {keys} }}\n",
    )


def clean(what: str) -> Remedy:
    """Ask for work on the data."""
    return Remedy(what)
