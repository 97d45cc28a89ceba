from __future__ import annotations

import enum
import json
import tomllib

import jsonschema
import pytest

from sft_engine.hookspecs import hookimpl
from sft_engine.plugins import Plugins, load_plugins
from sft_engine.recipe import parse_recipe
from sft_engine.schema import schema

GOOD = """\
seed = 3
[task]
use = "text-classification"
label_smoothing = 0.1
[data]
use = "csv"
path = "reviews.csv"
columns = {text = "review", label = "stars"}
validation = 0.2
[backbone]
use = "acme/bert"
name = "x"
[train]
epochs = 3
batch_size = 32
[evaluation]
metrics = ["accuracy", "f1"]
[optimizer]
use = "adamw"
betas = [0.9, 0.99]
[schedule]
use = "linear"
warmup = 0.1
[seeds]
order = 4
[[regularizer]]
use = "acme/pull"
side = "left"
scale = 2
[[extension]]
use = "early-stopping"
[[stream]]
name = "source"
use = "hf-dataset"
data = {name = "imdb"}
subset = 100
[[phase]]
name = "both"
epochs = 2
streams = {source = 1.0, data = 0.5}
"""


class Side(enum.Enum):
    LEFT = "left"
    RIGHT = "right"


class Backbone:
    def __init__(self, name: str) -> None: ...


class Pull:
    """Pull.

    Args:
        side: Which one.
    """

    def __init__(self, side: Side, **more: object) -> None: ...


@pytest.fixture(scope="module")
def document():
    class Acme:
        @hookimpl
        def sft_register(self, catalog):
            catalog.add("backbone", "acme/bert", f"{__name__}:Backbone", "A model.")
            catalog.add("regularizer", "acme/pull", f"{__name__}:Pull", "Pull weights.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_ENGINE_PLUGINS", "")
        plugins = load_plugins()
    plugins.add(Acme(), "acme", "sft-acme", "1.0")
    return schema(plugins)


@pytest.fixture(scope="module")
def validator(document):
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_it_is_json(document):
    assert json.loads(json.dumps(document)) == document


def test_a_recipe_is_valid(validator):
    validator.validate(parse_recipe(GOOD).tables)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('use = "adamw"', 'use = "adamw"\nlrr = 1'),
        ('use = "adamw"', 'use = "adamv"'),
        ('use = "adamw"', 'use = "adamw"\nlr = 0'),
        ("betas = [0.9, 0.99]", "betas = [0.9]"),
        ("epochs = 3", "epoch = 3"),
        ("epochs = 3", 'epochs = "3"'),
        ("[optimizer]", "[optimzer]"),
        ("[optimizer]", "[[optimizer]]"),
        ("[[extension]]", "[extension]"),
        ('path = "reviews.csv"\n', ""),
        ('path = "reviews.csv"', 'pth = "reviews.csv"'),
        ("validation = 0.2", "validatoin = 0.2"),
        ('side = "left"', 'side = "up"'),
        ('[backbone]\nuse = "acme/bert"', "[backbone]"),
        ("seed = 3", "seed = -3"),
        ("order = 4", "ordr = 4"),
        ('use = "early-stopping"', "patience = 3"),
        ('name = "source"\n', ""),
        ('use = "hf-dataset"', 'use = "hf-dataset"\nvalidation = 0.1'),
        ('name = "both"', 'nam = "both"'),
        ("source = 1.0", "source = 0"),
        ("[[phase]]", "[phase]"),
    ],
)
def test_a_mistake_is_not(validator, old, new):
    broken = GOOD.replace(old, new, 1)
    assert broken != GOOD
    assert not validator.is_valid(tomllib.loads(broken))


def test_a_recipe_needs_task_data_and_backbone_unless_it_extends_another(validator):
    assert not validator.is_valid({"seed": 1})
    assert validator.is_valid({"extends": "base.toml", "optimizer": {"lr": 1e-3}})
    assert not validator.is_valid({"extends": "base.toml", "optimizr": {"lr": 1e-3}})


def test_help_defaults_and_owners_are_there(document):
    optimizers = document["properties"]["optimizer"]["oneOf"]
    adamw = next(
        o
        for o in optimizers
        if o.get("properties", {}).get("use") and o["properties"]["use"]["const"] == "adamw"
    )
    assert adamw["properties"]["lr"]["default"] == 5e-5
    assert adamw["properties"]["lr"]["description"]
    assert adamw["title"].startswith("adamw (sft-engine ")
    assert document["properties"]["train"]["properties"]["batch_size"]["default"] == 32


def test_no_component_at_all_is_still_a_schema():
    document = schema(Plugins())
    jsonschema.Draft202012Validator.check_schema(document)
    assert not jsonschema.Draft202012Validator(document).is_valid(tomllib.loads(GOOD))
