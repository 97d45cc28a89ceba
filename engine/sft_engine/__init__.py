"""sft-engine: supervised fine-tuning that tells whether its result can be trusted.

What plugin authors and notebooks import. Importing this module imports no torch, nor anything else that
the command line's `--help` would wait for: all names but the errors are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sft_engine.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    ExportError,
    Interrupted,
    OutOfMemoryError,
    OutputError,
    RecipeError,
    SftError,
)

if TYPE_CHECKING:
    from sft_engine.catalog import plan
    from sft_engine.components import Capabilities, Explained, Head, LayerGroup, logits_of
    from sft_engine.flow import Action, Batch, Clock, LossTerm, Run, Split, Verdict, View
    from sft_engine.hookspecs import hookimpl
    from sft_engine.proof import verify_resume
    from sft_engine.recipe import Problem, Recipe, load_recipe
    from sft_engine.verbs import (
        compare,
        diagnose,
        evaluate,
        export,
        groups,
        lr_find,
        predict,
        report,
        resume,
        run,
        stability,
        tune,
    )

_LAZY = {
    "plan": "catalog",
    "Capabilities": "components",
    "Explained": "components",
    "Head": "components",
    "LayerGroup": "components",
    "logits_of": "components",
    "hookimpl": "hookspecs",
    "Problem": "recipe",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "Action": "flow",
    "Batch": "flow",
    "Clock": "flow",
    "LossTerm": "flow",
    "Run": "flow",
    "Split": "flow",
    "Verdict": "flow",
    "View": "flow",
    "compare": "verbs",
    "diagnose": "verbs",
    "evaluate": "verbs",
    "export": "verbs",
    "groups": "verbs",
    "lr_find": "verbs",
    "predict": "verbs",
    "report": "verbs",
    "resume": "verbs",
    "run": "verbs",
    "stability": "verbs",
    "tune": "verbs",
    "verify_resume": "proof",
}

__all__ = [
    "Action",
    "Batch",
    "Capabilities",
    "CheckpointError",
    "Clock",
    "DataError",
    "DivergedError",
    "Explained",
    "ExportError",
    "Head",
    "Interrupted",
    "LayerGroup",
    "LossTerm",
    "OutOfMemoryError",
    "OutputError",
    "Problem",
    "Recipe",
    "RecipeError",
    "Run",
    "SftError",
    "Split",
    "Verdict",
    "View",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "groups",
    "hookimpl",
    "load_recipe",
    "logits_of",
    "lr_find",
    "plan",
    "predict",
    "report",
    "resume",
    "run",
    "stability",
    "tune",
    "verify_resume",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sft_engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sft_engine.{_LAZY[name]}"), name)
