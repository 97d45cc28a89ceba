"""`new-recipe`: a recipe to begin with, every option in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sft_engine.catalog import plan
from sft_engine.options import signature_of
from sft_engine.plugins import load_plugins
from sft_engine.recipe import load_recipe, parse_recipe

NEW = ("new-recipe", "--backbone", "tiny/text", "--data", "tiny/texts")


def test_it_passes_check_as_it_is(sft):
    for arguments in (NEW, ("new-recipe",)):
        Path("new.toml").write_text(sft(*arguments).out)
        ended = sft("check", "new.toml")
        assert ended.code == 0, ended.err


def test_what_must_be_filled_in_is_in_capitals(sft):
    written = sft("new-recipe").out
    assert '\npath = "PATH"\n' in written
    recipe = parse_recipe(written)
    assert recipe.tables["data"]["path"] == "PATH"


@pytest.mark.parametrize("kind", ["task", "data"])
def test_every_installed_component_gets_a_recipe_that_passes_check(sft, kind):
    names = [entry.name for entry in load_plugins().catalog.entries(kind)]
    assert len(names) > 1
    for name in names:
        Path("new.toml").write_text(sft(*NEW, f"--{kind}", name).out)
        ended = sft("check", "new.toml")
        assert ended.code == 0, (name, ended.err)


def test_it_shows_every_option_with_its_default(sft):
    written = sft(*NEW).out
    (data,) = re.findall(r"^\[data\]\n(.*?)^\[", written, re.MULTILINE | re.DOTALL)
    signature = signature_of("sft_engine.testing.tiny:TinyTexts")
    for option in signature.options:
        assert f"#{option.name} = {option.default}\n" in data
        assert option.help.split(".")[0] in data.replace("\n# ", " ")
    for option in signature_of("sft_engine.settings:DataSettings").options:
        assert f"\n#{option.name} = " in data


def test_taking_the_comments_away_changes_nothing(sft):
    """Each `#key = value` is the default indeed."""
    written = sft(*NEW).out
    opened = re.sub(
        r"^#(\w+ = (?!…))", r"\1", written.partition("# Components of")[0], flags=re.MULTILINE
    )
    assert len(opened) < len(written)
    before, after = (plan(parse_recipe(text)) for text in (written, opened))
    assert [c.options for c in before.components] == [c.options for c in after.components]
    for part in ("train", "data", "evaluation", "checkpoint", "seeds"):
        assert getattr(before, part) == getattr(after, part)


def test_it_means_the_same_as_the_shortest_recipe(sft):
    Path("new.toml").write_text(sft(*NEW).out)
    short = '[task]\nuse = "text-classification"\n[data]\nuse = "tiny/texts"\n[backbone]\nuse = "tiny/text"\n'
    new, shortest = plan(load_recipe("new.toml")), plan(parse_recipe(short))
    options = [{c.kind: (c.name, c.options) for c in p.components} for p in (new, shortest)]
    assert options[0] == options[1]


def test_it_names_what_else_is_installed(sft):
    written = sft(*NEW).out
    assert '#[[regularizer]]\n#use = "tiny/pull"\n' in written
    assert '#use = "tiny/texts"' not in written


def test_lines_are_short(sft):
    assert max(map(len, sft("new-recipe").out.splitlines())) <= 100


def test_it_goes_to_a_file_and_never_over_one(sft):
    ended = sft(*NEW, "--output", "new.toml")
    assert ended.code == 0
    assert ended.out.startswith("new.toml: written")
    written = Path("new.toml").read_text()
    assert written == sft(*NEW).out
    again = sft("new-recipe", "--output", "new.toml")
    assert again.code == 1
    assert again.err == "error: new.toml exists and is left as it is; choose another --output.\n"
    assert Path("new.toml").read_text() == written


@pytest.mark.parametrize(
    ("option", "name", "advice"),
    [
        ("--backbone", "tiny/test", "did you mean `tiny/text`?"),
        (
            "--task",
            "translation",
            "`tabular-regression`, `text-classification`, `text-regression`.",
        ),
        ("--data", "csvs", "did you mean `csv`?"),
    ],
)
def test_an_unknown_name_gets_advice_and_no_file(sft, option, name, advice):
    ended = sft("new-recipe", option, name, "--output", "new.toml")
    assert ended.code == 2
    assert f'error: {option}: found "{name}"' in ended.err
    assert advice in ended.err
    assert not Path("new.toml").exists()
