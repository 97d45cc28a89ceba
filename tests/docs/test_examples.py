"""Recipes and command lines that pages show are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from sft_engine import plan
from sft_engine.cli import cli
from sft_engine.plugins import load_plugins
from sft_engine.recipe import parse_recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
RECIPES = [
    (page, recipe)
    for page in PAGES
    for recipe in re.findall(
        r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    if "[task]" in recipe
]
COMMANDS = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(r"sft[-_]engine (?=[a-z])[^\n`]*", page.read_text("utf-8"))
        if command.split()[1] in cli.list_commands(click.Context(cli))
    }
)


@pytest.mark.parametrize(("page", "recipe"), RECIPES, ids=[page.name for page, _ in RECIPES])
def test_recipe_passes_the_check(page: Path, recipe: str) -> None:
    assert plan(parse_recipe(recipe, page.name), load_plugins()).components


@pytest.mark.parametrize("line", COMMANDS)
def test_command_line_is_understood(line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    command: click.Command = cli
    while isinstance(command, click.Group) and arguments:
        below = command.get_command(click.Context(command), arguments[0])
        assert below is not None, arguments[0]
        command, arguments = below, arguments[1:]
    if arguments:
        command.make_context(line, arguments)


def test_pages_show_something_to_check() -> None:
    assert len(RECIPES) >= 2
    assert len(COMMANDS) >= 8
