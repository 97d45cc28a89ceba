"""Every remedy can be pasted: the recipe with its lines passes `check`."""

from __future__ import annotations

import inspect
import tomllib

import pytest

from sft_engine.catalog import plan
from sft_engine.diagnosis import Remedy, remedies
from sft_engine.diagnosis.evidence import Evidence
from sft_engine.plugins import load_plugins
from sft_engine.recipe import dump_tables, parse_recipe

BASES = {
    "text": """
[task]
use = "text-classification"
[data]
use = "csv"
path = "reviews.csv"
[backbone]
use = "transformers"
name = "bert-base-uncased"
""",
    "image": """
[task]
use = "image-classification"
[data]
use = "image-folder"
path = "pictures"
[backbone]
use = "timm"
name = "resnet18"
[schedule]
use = "constant"
[freezing]
use = "frozen"
[checkpoint]
best = "last"
[train]
precision = "bf16"
clip_norm = 0
steps = 100
""",
    "table": """
[task]
use = "tabular-regression"
[data]
use = "csv"
path = "table.csv"
[backbone]
use = "mlp"
[[regularizer]]
use = "ema"
final = false
[[augmentation]]
use = "swap-noise"
[checkpoint]
best = "loss"
""",
}
OTHERS = {
    "scale_lr": lambda e: remedies.scale_lr(e, 0.5, "Half of it."),
    "own_splits": lambda _: remedies.own_splits(("validation", "test")),
    "clean": lambda _: remedies.clean("Read them."),
}


def pasted(base: str, lines: str) -> str:
    """Return a recipe with lines pasted as a user would: keys into tables, `[[...]]` at the end."""
    tables, more = tomllib.loads(base), tomllib.loads(lines)
    for name, value in more.items():
        if isinstance(value, list):
            tables[name] = [*tables.get(name, []), *value]
        elif isinstance(value, dict):
            kept = tables.get(name, {})
            if value.get("use", kept.get("use")) != kept.get("use"):
                kept = {}  # the options of another component go with it
            tables[name] = kept | value
        else:
            tables = {name: value, **tables}
    return dump_tables(tables)


def functions():
    """Return every function of `remedies` that makes one."""
    named = vars(remedies).items()
    own = {
        name: function
        for name, function in named
        if inspect.isfunction(function)
        and function.__module__ == remedies.__name__
        and not name.startswith("_")
        and name != "kept"
    }
    return {**own, **OTHERS}


@pytest.fixture(scope="module")
def plugins():
    return load_plugins()


@pytest.mark.parametrize("base", BASES)
def test_a_recipe_with_a_remedy_passes_check(base, plugins):
    text = BASES[base]
    own = plan(parse_recipe(text), plugins).resolved()
    kind = "regression" if "regression" in text else "classification"
    evidence = Evidence(recipe=own.tables, start={"head": kind})
    seen = 0
    for name, function in functions().items():
        remedy = function(evidence)
        if remedy is None:
            continue
        assert isinstance(remedy, Remedy), name
        assert remedy.why.endswith("."), name
        if remedy.toml:
            seen += 1
            plan(parse_recipe(pasted(text, remedy.toml), name), plugins)
    assert seen > 12


def test_each_remedy_fits_one_of_the_recipes(plugins):
    """Otherwise the test above would not have looked at it."""
    found = set()
    for text in BASES.values():
        tables = plan(parse_recipe(text), plugins).resolved().tables
        kind = "regression" if "regression" in text else "classification"
        evidence = Evidence(recipe=tables, start={"head": kind})
        found |= {name for name, function in functions().items() if function(evidence)}
    assert found == set(functions())


def test_what_a_recipe_has_is_not_proposed():
    recipe = {
        "schedule": {"use": "linear", "warmup": 0.1},
        "train": {"clip_norm": 1.0},
        "regularizer": [{"use": "l2-sp"}],
        "extension": [{"use": "early-stopping"}],
        "freezing": {"use": "frozen"},
    }
    evidence = Evidence(recipe=recipe)
    for function in (
        remedies.warm_up,
        remedies.decay,
        remedies.clip,
        remedies.l2_sp,
        remedies.early_stopping,
        remedies.freeze_lower,
    ):
        assert function(evidence) is None


def test_the_learning_rate_of_a_phase_is_left_to_the_user():
    evidence = Evidence(recipe={"optimizer": {"lr": 1.0}, "phase": [{"name": "p", "lr": 0.1}]})
    assert remedies.lower_lr(evidence) is None
    assert remedies.lower_lr(Evidence(recipe={"optimizer": {"lr": 0.02}})).toml.endswith(
        "lr = 0.002\n"
    )
