"""The timeline of docs/writing-a-plugin.md is what happens."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sft_engine import hookimpl
from sft_engine.plugins import RUN_HOOKS
from sft_engine.testing.runs import TINY, run_recipe

PAGE = Path(__file__).parents[2] / "docs/writing-a-plugin.md"


def listener(seen: list[str]) -> type:
    """Return a component class that notes the name of every hook that is called."""

    def noting(name: str) -> Callable[[Any], None]:
        return hookimpl(lambda self: seen.append(name))

    @hookimpl(wrapper=True)
    def sft_micro_step(self: Any) -> Iterator[None]:
        seen.append("sft_micro_step")
        return (yield)

    hooks = {name: noting(name) for name in RUN_HOOKS} | {"sft_micro_step": sft_micro_step}
    return type("Listener", (), hooks)


def test_hooks_fire_in_the_order_of_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    module = ModuleType("timeline_listener")
    module.Listener = listener(seen)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    recipe = f'{TINY}\n[[extension]]\nuse = "test/listener"\n'
    run_recipe(
        tmp_path,
        recipe,
        components={("extension", "test/listener"): "timeline_listener:Listener"},
    )
    timeline = re.search(
        r"^```text\n(sft_build_data.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert timeline is not None
    shown = re.findall(r"^ *(sft_\w+)", timeline[1], re.MULTILINE)
    assert list(dict.fromkeys(seen)) == shown
    assert set(shown) == set(RUN_HOOKS)
