"""Every component of sft-regularizers on the tiny text model: options that do much, and that do nothing."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from safetensors.torch import load_file

from sft_engine.catalog import plan
from sft_engine.recipe import parse_recipe
from sft_engine.testing.runs import TINY, tiny_plugins
from sft_engine.training import train

STEPS = 4
SHORT = [
    f"train.steps={STEPS}",
    "data.examples=44",  # 28 to train on: windows of 16 and 12
    "evaluation.test=false",
    "evaluation.every_epochs=0",
    "checkpoint.every_epochs=0",
    "checkpoint.best=last",
    "optimizer.use=sgd",
    "optimizer.lr=0.1",
]
DOUBLE = ["backbone.dtype=float64", "optimizer.momentum=0.9"]


@dataclass(frozen=True)
class Case:
    """A component with options, as TOML lines.

    Args:
        options: Under which it changes the tiny run clearly.
        zero: Under which it must change nothing.
        parts: Whether a window may be cut in micro-batches.
    """

    options: str = ""
    zero: str = ""
    parts: bool = True


CASES = {
    "l1": Case("strength = 0.01", "strength = 0"),
    "l2": Case("strength = 0.1", "strength = 0"),
    "elastic-net": Case("strength = 0.1", "strength = 0"),
    "orthogonal": Case("strength = 0.01", "strength = 0"),
    "l2-sp": Case("alpha = 0.5\nbeta = 0.1", "alpha = 0\nbeta = 0"),
    "l2-sp-fisher": Case("alpha = 5.0\nexamples = 8", "alpha = 0\nbeta = 0"),
    "ewc": Case("examples = 8", "strength = 0"),
    "bss": Case("strength = 0.1", "strength = 0", parts=False),
    "lwf": Case("", "strength = 0"),
    "mixout": Case("p = 0.5", "p = 0"),
    "r-drop": Case("", "alpha = 0"),
    "r3f": Case("epsilon = 0.1", "strength = 0"),
    "r4f": Case("epsilon = 0.1", "strength = 0\nspectral = false"),
    "smart": Case("epsilon = 0.1\nstep_size = 0.1\nproximity = 1.0", "strength = 0"),
    "freelb": Case("", "steps = 1\ninitial = 0"),
    "fgm": Case("", "epsilon = 0"),
    "neftune": Case("", "alpha = 0"),
    "noisy-tune": Case("", "strength = 0"),
    "re-init": Case("", "layers = 0"),
    "child-tuning": Case("examples = 8", "p = 1"),
    "gradient-noise": Case("", "eta = 0"),
    "confidence-penalty": Case("", "strength = 0"),
    "distillation": Case("", "alpha = 0"),
    "sam": Case("", "rho = 0"),
    "asam": Case("", "rho = 0"),
    "spike-guard": Case("least = 1\nmemory = 1\nfactor = 1.01\npatience = 1", "factor = 1e9"),
    "ema": Case("", "decay = 0\nwarmup = false"),
    "swa": Case("start = 0.2\nevery_steps = 1", "start = 1"),
    "lawa": Case("every_steps = 1", "members = 1\nevery_steps = 1"),
    "wise-ft": Case("alphas = [0.5]", "alphas = [1.0]"),
}
AGAIN = ("sam", "asam", "fgm")
"""Of these a recipe may have one."""
RESULTS = ("ema", "swa", "lawa", "wise-ft")
"""Of these one may be the result; the others are evaluated only."""


@functools.cache
def plugins():
    return tiny_plugins()


def recipe(*names, zero=False, final=False):
    """Return the tiny recipe with components; `final = false` where two would be the result."""
    text = TINY
    for name in names:
        case = CASES[name]
        text += f'[[regularizer]]\nuse = "{name}"\n{case.zero if zero else case.options}\n'
        if final and name in RESULTS and name != "wise-ft":
            text += "final = false\n"
    return text


def planned(text, overrides=()):
    return plan(parse_recipe(text, "recipe.toml", [*SHORT, *overrides]), plugins())


def trained(folder, text, overrides=(), **options):
    return train(planned(text, overrides), folder, **options)


def weights(outcome):
    return load_file(outcome.folder / "model" / "model.safetensors")


def difference(one, other):
    """Return the largest difference between the weights of two outcomes."""
    ours, theirs = weights(one), weights(other)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def records(outcome, kind="train"):
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def compatible():
    """Return as many components as go together in one recipe: all but the second of a kind."""
    return [name for name in CASES if name not in ("asam", "fgm", "bss")]
