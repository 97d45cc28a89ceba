"""Every component of the shelf on tiny models: options that do much, and that do nothing.

A component without a case here fails `test_every_component_has_a_case`. Add a line to CASES; the claims of
`test_every_method.py` are then made of it, alone and in pairs with all others.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import datasets.arrow_dataset
import parts
from safetensors.torch import load_file

import sft_augmentations
import sft_freezing
import sft_regularizers
from sft_engine import SftError, catalog
from sft_engine import records as engine_records
from sft_engine.catalog import plan
from sft_engine.recipe import parse_recipe
from sft_engine.testing.runs import tiny_plugins
from sft_engine.training import train

STEPS = 4
DATA = {
    "text": ("text-classification", "methods/words"),
    "image": ("image-classification", "tiny/pictures"),
    "table": ("tabular-classification", "methods/numbers"),
    "sound": ("audio-classification", "methods/sounds"),
}
"""Task and data of the recipes that components are tried on; each with the backbone `methods/KIND`."""

BASE = """
[task]
use = "{task}"
[data]
use = "{data}"
validation = 8
test = 8
examples = 44
[backbone]
use = "methods/{kind}"
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
steps = 4
log_every = 1
[evaluation]
page = false
train_sample = 0
test = false
every_epochs = 0
[checkpoint]
every_epochs = 0
best = "last"
[optimizer]
use = "sgd"
lr = 0.1
"""
"""28 examples to train on: windows of 16 and 12, two epochs of them."""

DOUBLE = ["backbone.dtype=float64", "optimizer.momentum=0.9", "train.replay=false"]

TEXT, IMAGE, TABLE, SOUND = ("text",), ("image",), ("table",), ("sound",)
ALL = tuple(DATA)


@dataclass(frozen=True)
class Case:
    """A component with options, as TOML lines.

    Args:
        options: Under which it changes the tiny run clearly.
        zero: Under which it must change nothing; None if there are none such, and then `why` says so.
        homes: Kinds of data that it takes, the one that it is tried on first.
        whole: Why a window cut in micro-batches gives something else; empty where it must not.
        needs: What the tiny model must have for it.
        why: Of `zero`.
        use: Its name in the catalog, if the case has another one.
    """

    options: str = ""
    zero: str | None = ""
    homes: tuple[str, ...] = ALL
    whole: str = ""
    needs: tuple[str, ...] = ()
    why: str = ""
    use: str = ""


PENALTIES = {
    "l1": Case("strength = 0.01", "strength = 0"),
    "l2": Case("strength = 0.1", "strength = 0"),
    "elastic-net": Case("strength = 0.1", "strength = 0"),
    "orthogonal": Case("strength = 0.01", "strength = 0"),
    "l2-sp": Case("alpha = 0.5\nbeta = 0.1", "alpha = 0\nbeta = 0"),
    "l2-sp-fisher": Case("alpha = 5.0\nexamples = 8", "alpha = 0\nbeta = 0"),
    "ewc": Case("examples = 8", "strength = 0"),
    "delta": Case('alpha = 1.0\nattention = "measured"\nexamples = 8', "alpha = 0\nbeta = 0"),
    "bss": Case("strength = 0.1", "strength = 0", whole="it is about a whole batch"),
    "lwf": Case("", "strength = 0"),
}
DRAWS = "its draws, like those of dropout, are of a micro-batch"
NOISE = {
    "dropout": Case("p = 0.3", "p = 0.0", whole=DRAWS),
    "drop-path": Case("p = 0.5", "p = 0.0", homes=TEXT, whole=DRAWS),
    "mixout": Case("p = 0.5", "p = 0", homes=("text", "table", "sound")),
    "r-drop": Case("", "alpha = 0"),
    "r3f": Case("epsilon = 0.1", "strength = 0", homes=TEXT),
    "r4f": Case("epsilon = 0.1", "strength = 0\nspectral = false", homes=TEXT),
    "smart": Case("epsilon = 0.1\nstep_size = 0.1\nproximity = 1.0", "strength = 0", homes=TEXT),
    "freelb": Case("", "steps = 1\ninitial = 0", homes=TEXT),
    "fgm": Case("", "epsilon = 0", homes=TEXT),
    "neftune": Case("", "alpha = 0", homes=TEXT),
    "noisy-tune": Case("", "strength = 0"),
    "re-init": Case("", "layers = 0"),
    "child-tuning": Case("examples = 8", "p = 1"),
    "child-tuning F": Case('mode = "F"', 'mode = "F"\np = 1', use="child-tuning"),
    "gradient-noise": Case("", "eta = 0"),
}
TARGETS = {
    "label-smoothing": Case("strength = 0.2", "strength = 0"),
    "confidence-penalty": Case("", "strength = 0"),
    "distillation": Case("", "alpha = 0"),
}
STEPPING = {
    "sam": Case("", "rho = 0"),
    "asam": Case("", "rho = 0"),
    "spike-guard": Case("least = 1\nmemory = 1\nfactor = 1.01\npatience = 1", "factor = 1e9"),
}
AVERAGES = {
    "ema": Case("", "decay = 0\nwarmup = false"),
    "swa": Case("start = 0.2\nevery_steps = 1", "start = 1"),
    "lawa": Case("every_steps = 1", "members = 1\nevery_steps = 1"),
    "wise-ft": Case("alphas = [0.5]", "alphas = [1.0]"),
}
FREEZING = {
    "frozen": Case("", 'keep = ["*"]'),
    "gradual-unfreezing": Case("until = 0.75\nrewarm = 2", "first = 9\nrewarm = 3"),
    "lp-ft": Case("until = 0.5\nscale = 0.5\nrewarm = 2", "until = 0.0\nrewarm = 3"),
    "chain-thaw": Case("rewarm = 2", None, why="a chain trains one layer group at a time"),
    "surgical": Case('train = "first"', 'train = "*"'),
    "progressive-freezing": Case("first = 0.25\nanneal = true", "first = 1.0"),
}
FROZEN = "the rest of the model is frozen"
ADAPTERS = {
    "lora": Case("rank = 2", None, why=FROZEN),
    "adalora": Case(
        "rank = 4\ntarget = 2\nevery = 1", None, why=FROZEN, homes=("text", "table", "sound")
    ),
    "ia3": Case("", None, why=FROZEN),
    "peft": Case('method = "loha"\noptions = { r = 2, alpha = 4 }', None, why=FROZEN),
}
RATES = {
    "layer-decay": Case("decay = 0.5\nhead = 2.0", "decay = 1.0"),
    "discriminative": Case("lowest = 0.1", "lowest = 1.0"),
    "auto-rgn": Case("", "power = 0.0"),
    "bn-freeze": Case("", "after = 1.0", needs=("backbone.norm=true",)),
}
TEXTS = {
    "keyboard-typos": Case("rate = 0.3\nuntil = 0.9", "rate = 0", homes=TEXT),
    "character-noise": Case("rate = 0.3\nuntil = 0.9", "rate = 0", homes=TEXT),
    "word-dropout": Case('rate = 0.5\ntoken = "q"\nuntil = 0.9', "rate = 0", homes=TEXT),
    "casing": Case("share = 0.9\nuntil = 0.9", "share = 0", homes=TEXT),
    "eda": Case('synonyms = "{files}/synonyms.txt"\nuntil = 0.9', "rate = 0", homes=TEXT),
    "paraphrases": Case(
        'path = "{files}/wordings.jsonl"\nuntil = 0.9',
        'path = "{files}/wordings.jsonl"\nshare = 0',
        homes=TEXT,
    ),
    "cutoff": Case("rate = 0.5\nshare = 1.0", "rate = 0", homes=TEXT, whole=DRAWS),
}
IMAGES = {
    "rand-augment": Case("until = 0.9", "operations = 0", homes=IMAGE),
    "trivial-augment": Case("until = 0.9", "share = 0", homes=IMAGE),
    "augmix": Case("until = 0.9", "severity = 0", homes=IMAGE),
    "augmix with its term": Case(
        "consistency = 12.0", "consistency = 12.0\nseverity = 0", homes=IMAGE, use="augmix"
    ),
    "random-erasing": Case("until = 0.9", "share = 0", homes=IMAGE),
    "colour": Case("until = 0.9", "brightness = 0\ncontrast = 0\nsaturation = 0", homes=IMAGE),
}
PARTNERS = "an example meets those of its own micro-batch"
TABLES = {
    "mixup": Case("alpha = 1.0", "alpha = 0", homes=("table", "image", "sound"), whole=PARTNERS),
    "cutmix": Case("share = 1.0", "share = 0", homes=IMAGE, whole=PARTNERS),
    "kornia": Case(
        'transforms = [{ name = "RandomGaussianNoise", std = 0.2, p = 1.0 }]',
        'transforms = [{ name = "RandomGaussianNoise", p = 0.0 }]',
        homes=IMAGE,
        whole=DRAWS,
    ),
    "feature-noise": Case("until = 0.9", "strength = 0", homes=TABLE),
    "swap-noise": Case("until = 0.9", "rate = 0", homes=TABLE),
}
SOUNDS = {
    "background-noise": Case(
        "share = 1.0\nsnr = [0.0, 5.0]\nuntil = 0.9", "share = 0", homes=SOUND
    ),
    "time-stretch": Case("share = 1.0\nuntil = 0.9", "share = 0", homes=SOUND),
    "pitch-shift": Case("share = 1.0\nuntil = 0.9", "share = 0", homes=SOUND),
    "spec-augment": Case(
        "frequency_width = 4",
        "time_masks = 0\nfrequency_masks = 0\nmodel_time = 0",
        homes=SOUND,
    ),
}
RARE = {
    "balanced-sampler": Case("power = 0.5", "power = 0", homes=("table", "text", "image", "sound")),
    "focal": Case("", "gamma = 0", homes=("table", "text", "image", "sound")),
    "logit-adjustment": Case("", "tau = 0", homes=("table", "text", "image", "sound")),
    "class-weights": Case(
        'method = "inverse"', "beta = 0", homes=("table", "text", "image", "sound")
    ),
}
REGULARIZERS = {**PENALTIES, **NOISE, **TARGETS, **STEPPING, **AVERAGES}
LAYERS = {**FREEZING, **ADAPTERS, **RATES}
AUGMENTATIONS = {**TEXTS, **IMAGES, **TABLES, **SOUNDS}
CASES = {**REGULARIZERS, **LAYERS, **AUGMENTATIONS, **RARE}

RESULTS = ("ema", "swa", "lawa", "wise-ft")
"""Of these one may be the result; the others are evaluated only."""

EXCLUDE = (
    ("sam", "asam", "fgm"),
    (*FREEZING, *ADAPTERS),
    ("layer-decay", "discriminative"),
    ("augmix with its term", "mixup"),
    ("augmix with its term", "cutmix"),
    *((adapter, name) for adapter in ADAPTERS for name in ("re-init", "noisy-tune", "fgm")),
)
"""Groups of which a recipe may have one."""


def shelf() -> dict[str, str]:
    """Return the kind of every component of the three plugins, by name."""
    found = dict.fromkeys(sft_regularizers.COMPONENTS, "regularizer")
    found |= dict.fromkeys(sft_freezing.SCHEDULES | sft_freezing.ADAPTERS, "freezing")
    found |= dict.fromkeys(sft_freezing.RATES, "extension")
    found |= dict.fromkeys(sft_augmentations.AUGMENTATIONS, "augmentation")
    found |= dict.fromkeys(sft_augmentations.EXTENSIONS, "extension")
    return found


# --- recipes --------------------------------------------------------------------------------------


@functools.cache
def files() -> Path:
    """Write synonyms and other wordings for every tiny text, once for a group of processes."""
    known = os.environ.get("METHODS_FILES")
    if known:
        return Path(known)
    folder = Path(tempfile.mkdtemp(prefix="sft-engine-methods-"))
    texts = parts.Words().load()["train"]["text"]
    words = sorted({word for text in texts for word in text.split()})
    (folder / "synonyms.txt").write_text("".join(f"{word}, {word}h\n" for word in words))
    lines = [json.dumps({"text": t, "alternatives": [f"{t}h", f"a{t}"]}) for t in texts]
    (folder / "wordings.jsonl").write_text("\n".join(lines))
    os.environ["METHODS_FILES"] = str(folder)
    return folder


@functools.cache
def plugins():
    return tiny_plugins(parts.COMPONENTS)


def home_of(names: Iterable[str]) -> str:
    """Return the kind of data that all of several components take; empty if there is none."""
    homes = [CASES[name].homes for name in names]
    return next(
        (home for home in (homes[0] if homes else ALL) if all(home in h for h in homes)), ""
    )


def table(name: str, *, zero: bool = False, final: bool = True) -> str:
    """Return the table of a component."""
    case = CASES[name]
    use = case.use or name
    kind = shelf()[use]
    head = f"[{kind}]" if kind == "freezing" else f"[[{kind}]]"
    options = (case.zero or "") if zero else case.options
    if "{files}" in options:
        options = options.replace("{files}", str(files()))
    if not final and name in RESULTS and name != "wise-ft":
        options += "\nfinal = false"
    return f'{head}\nuse = "{use}"\n{options}\n'


def recipe(*names: str, zero: bool = False, final: bool = True, home: str = "") -> str:
    """Return the tiny recipe with components; `final = False` where two would be the result."""
    kind = home or home_of(names)
    task, data = DATA[kind]
    text = BASE.format(task=task, data=data, kind=kind)
    return text + "".join(table(name, zero=zero, final=final) for name in names)


def needs(names: Iterable[str]) -> list[str]:
    """Return what the tiny model must have, as overrides."""
    return sorted({need for name in names for need in CASES[name].needs})


def planned(text: str, overrides: Sequence[str] = ()):
    return plan(parse_recipe(text, "recipe.toml", overrides), plugins())


def trained(folder: Path, text: str, overrides: Sequence[str] = (), **options):
    return train(planned(text, overrides), folder, **options)


# --- what a run has left --------------------------------------------------------------------------


def weights(outcome):
    return load_file(outcome.folder / "model" / "model.safetensors")


def difference(one, other):
    """Return the largest difference between the weights of two outcomes."""
    ours, theirs = weights(one), weights(other)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def records(outcome, kind="train"):
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# --- together, and apart --------------------------------------------------------------------------


def excludes(first: str, second: str) -> bool:
    """Whether two components shall be refused in one recipe."""
    return any({first, second} <= set(group) for group in EXCLUDE)


def compatible(home: str, without: Sequence[str] = ()) -> list[str]:
    """Return as many components as go together in one recipe on a kind of data, in the order of CASES.

    Not those that are about a window in one piece alone, nor two of one component.
    """
    chosen: list[str] = []
    for name, case in CASES.items():
        alone = name == "bss" or case.use or name in without
        if home in case.homes and not alone and not any(excludes(name, each) for each in chosen):
            chosen.append(name)
    return chosen


def pairs() -> Iterator[tuple[str, str]]:
    """Yield every pair of cases that are of different components."""
    for first, second in itertools.combinations(CASES, 2):
        if (CASES[first].use or first) != (CASES[second].use or second):
            yield first, second


@functools.cache
def refusal(first: str, second: str, *, final: bool = False) -> str:
    """Return what `check` says to two components in one recipe; empty if it takes them.

    Args:
        first: On whose data, if both take it.
        second: The other.
        final: Whether averages shall be the result, of which there is one.
    """
    home = home_of((first, second))
    if not home:
        return "different data"
    try:
        planned(recipe(first, second, final=final, home=home), needs((first, second)))
    except SftError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def shared_costs() -> Iterator[None]:
    """Keep signatures and versions, which do not change, and number data sets instead of hashing them."""
    numbers = map("{:016x}".format, itertools.count())
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in (
            (datasets.arrow_dataset, "generate_fingerprint", lambda _: next(numbers)),
            (catalog, "signature_of", functools.cache(catalog.signature_of)),
            (engine_records, "library_versions", functools.cache(engine_records.library_versions)),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


def assert_finite(outcome) -> None:
    assert all(weight.isfinite().all() for weight in weights(outcome).values())
    assert all(math.isfinite(r["loss"]) for r in records(outcome))
