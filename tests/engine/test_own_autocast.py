"""Autocast is around the model, not in it: docs/decisions/0006-own-autocast.md."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sft_engine import hookimpl
from sft_engine.testing.runs import TINY, run_recipe

RECIPE = f'{TINY}\n[[extension]]\nuse = "test/witness"\n'


class Witness:
    """Notes in what the loss is computed, and what has become of the model."""

    dtypes: set[torch.dtype]
    patched: bool

    @hookimpl
    def sft_loss_terms(self, outputs: Any) -> list[Any]:
        Witness.dtypes.add(outputs.dtype)
        return []

    @hookimpl
    def sft_train_end(self, run: Any) -> None:
        Witness.patched = "forward" in vars(run.model)


def test_the_model_keeps_its_own_forward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("witness_of_autocast")
    module.Witness = Witness  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Witness.dtypes = set()
    components = {("extension", "test/witness"): "witness_of_autocast:Witness"}
    run_recipe(tmp_path, RECIPE, ["train.precision=bf16"], components)
    assert Witness.dtypes == {torch.bfloat16}
    assert not Witness.patched
