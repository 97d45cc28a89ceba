"""What `import sft_engine` gives, whatever was imported before."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import sft_engine


def test_verbs_are_functions_after_every_module_was_imported() -> None:
    for module in pkgutil.walk_packages(sft_engine.__path__, "sft_engine."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for verb in (
        "compare",
        "evaluate",
        "export",
        "lr_find",
        "predict",
        "report",
        "resume",
        "run",
        "tune",
        "verify_resume",
    ):
        assert verb in sft_engine.__all__
        assert inspect.isfunction(getattr(sft_engine, verb)), verb


def test_public_names_are_sorted_and_there() -> None:
    assert sft_engine.__all__ == sorted(sft_engine.__all__)
    for name in sft_engine.__all__:
        assert getattr(sft_engine, name) is not None
