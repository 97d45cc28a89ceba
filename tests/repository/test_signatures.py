"""What is read from a component's source is what Python says after importing it."""

from __future__ import annotations

import importlib
import inspect

import pytest

from sft_engine.entries import Entry
from sft_engine.options import Option, signature_of
from sft_engine.plugins import load_plugins

COMPONENTS = [entry for entry in load_plugins().catalog.entries() if entry.kind != "weights"]


def inspected(entry: Entry) -> list[tuple[str, object]]:
    module, _, name = entry.target.partition(":")
    made = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(made).parameters.values()
    return [(p.name, p.default) for p in parameters if p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize("entry", COMPONENTS, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_options_read_from_source_are_those_of_the_constructor(entry: Entry) -> None:
    options = signature_of(entry.target).options
    assert [(each.name, each.default) for each in options] == inspected(entry)


@pytest.mark.parametrize("entry", COMPONENTS, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_option_has_its_line_of_help(entry: Entry) -> None:
    without: list[Option] = [each for each in signature_of(entry.target).options if not each.help]
    assert without == []
