from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from sft_engine import builtin
from sft_engine.builtin import COMPONENTS
from sft_engine.recipe import parse_recipe
from sft_engine.signatures import signature_of

EVERY = [
    (kind, name, f"sft_engine.builtin.{place}", summary)
    for kind, components in COMPONENTS.items()
    for name, (place, summary) in components.items()
]
METHODS = {
    "task": ("prepare", "targets", "units", "loss", "predictions", "metrics", "records"),
    "data": ("load",),
    "optimizer": ("build",),
    "schedule": ("factor",),
}


@pytest.mark.parametrize(("kind", "name", "target", "summary"), EVERY)
def test_every_component_is_there_and_says_what_its_options_are(kind, name, target, summary):
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    for method in METHODS.get(kind, ()):
        assert callable(getattr(found, method))
    signature = signature_of(target)
    assert signature.summary
    assert [option.name for option in signature.options if not option.help] == []
    assert summary.endswith(".")


def test_registering_imports_nothing_heavy():
    code = (
        "import sys; from sft_engine import builtin; from sft_engine.catalog import Catalog;"
        "builtin.sft_register(Catalog('sft-engine'));"
        "print({'torch', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


RECIPE = """
[task]
use = "{task}"
{options}
[data]
use = "csv"
path = "a.csv"
[backbone]
use = "any"
[evaluation]
metrics = {metrics}
"""


@pytest.mark.parametrize(
    ("task", "options", "metrics", "wrong"),
    [
        ("text-classification", "", '["acuracy", "f1/neg"]', ["acuracy"]),
        ("text-classification", 'labels = "multi"', '["exact-match"]', []),
        ("text-classification", "", '["exact-match"]', ["exact-match"]),
        ("text-regression", "", '["f1", "mse"]', ["f1"]),
        ("image-classification", "", '["f1", "mse"]', ["mse"]),
        ("image-classification", 'labels = "multi"', '["exact-match"]', []),
        ("acme/ranking", "", '["whatever"]', []),
        ("text-regression", "", "3", []),
    ],
)
def test_metrics_that_a_task_does_not_have_are_found_before_anything_is_built(
    task, options, metrics, wrong
):
    recipe = parse_recipe(RECIPE.format(task=task, options=options, metrics=metrics))
    problems = list(builtin.sft_check_recipe(recipe))
    assert [p.message for p in problems] == [f'there is no metric "{name}"' for name in wrong]
    assert all(p.key == "evaluation.metrics" and p.hint for p in problems)
