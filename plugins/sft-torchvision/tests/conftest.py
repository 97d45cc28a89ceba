"""No network; a task as the backbone sees it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sft_engine import Head


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """Caches that start empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_task():
    """Return what a backbone asks of a task."""

    def make(outputs=3, kind="classification"):
        names = tuple(f"class {index}" for index in range(outputs))
        return SimpleNamespace(
            inputs={"image": True}, target="label", head=Head(kind, outputs, names)
        )

    return make
