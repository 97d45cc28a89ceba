"""What the command line says about itself, and how little it loads for that."""

from __future__ import annotations

import importlib
import json
import re

import click
import pytest

from sft_engine.cli.group import VERBS, cli
from sft_engine.errors import SftError

HEAVY = {"torch", "numpy", "pydantic", "accelerate", "datasets", "transformers", "rich"}
LOADED = """
import json, sys
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
code = exit_code_of(cli, {arguments!r})
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def loaded_by(start, *arguments):
    _, err = start(code=LOADED.format(arguments=list(arguments))).communicate()
    code, modules = json.loads(err.splitlines()[-1])
    assert code == 0, err
    return set(modules)


def test_help_loads_click_and_nothing_else(start):
    modules = loaded_by(start, "--help")
    assert modules & HEAVY == set()
    ours = {name for name in modules if name.startswith("sft_engine")}
    assert ours == {
        "sft_engine",
        "sft_engine.errors",
        "sft_engine.cli",
        "sft_engine.cli.group",
        "sft_engine.cli.ending",
    }
    # What would cost more than the rest together.
    assert modules & {"pluggy", "importlib.metadata", "sft_tiny"} == set()


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"]])
def test_the_list_of_plugins_loads_no_component(start, arguments):
    modules = loaded_by(start, *arguments)
    assert modules & HEAVY == set()
    assert "sft_tiny" in modules
    assert "sft_tiny_parts" not in modules


def test_check_loads_no_torch(start):
    modules = loaded_by(start, "check", "tiny.toml")
    assert modules & {"torch", "accelerate", "datasets", "transformers"} == set()


def test_without_a_verb_it_shows_the_help(sft):
    alone = sft()
    assert alone.code == 0
    assert alone.out == sft("--help").out == sft("-h").out


def test_help_lists_every_verb_and_every_exit_code(sft):
    shown = sft("--help").out
    listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", shown, re.MULTILINE)
    assert listed == list(VERBS)
    codes = set(map(int, re.findall(r"(\d+) [a-zC]", shown.partition("Exit codes:")[2])))
    kinds = [SftError, *SftError.__subclasses__()]
    assert codes >= {0, *(kind.exit_code for kind in kinds)}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_module_of_its_own_and_help(sft, verb):
    module = importlib.import_module(f"sft_engine.cli.{verb.replace('-', '_')}")
    command = cli.get_command(click.Context(cli), verb)
    assert command is module.command
    long, short = sft(verb, "--help"), sft(verb, "-h")
    assert (long.code, short.code) == (0, 0)
    assert long.out == short.out
    assert long.out.startswith(f"Usage: sft-engine {verb}")
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{verb} {option.opts}"


def test_version(sft):
    ended = sft("--version")
    assert re.fullmatch(r"sft-engine \d+\.\d+\.\d+\n", ended.out)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("rnu", "did you mean `run`?"),
        ("verify", "did you mean `verify-resume`?"),
        ("gret", "did you mean `greet`?"),
        ("tiny.toml", "did you mean `sft-engine run tiny.toml`?"),
        ("zzz", "allowed: run, check, "),
    ],
)
def test_an_unknown_verb_gets_advice(sft, word, advice):
    ended = sft(word)
    assert ended.code == 2
    assert ended.err.startswith(f"error: there is no verb '{word}'; ")
    assert advice in ended.err
    assert ended.err.count("\n") == 1


def test_a_run_folder_for_a_verb_gets_advice(sft, trained):
    assert f"did you mean `sft-engine evaluate {trained}`" in sft(trained).err


def test_a_verb_of_a_plugin_runs(sft):
    ended = sft("greet", "you")
    assert (ended.code, ended.out) == (0, "hello you\n")


def test_a_plugin_cannot_take_a_verb_of_the_engine(sft):
    assert "no such file" in sft("run", "absent.toml").err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "error: Missing argument 'RECIPE'. See `sft-engine run --help`.\n"),
        (["run", "tiny.toml", "--sett"], "No such option '--sett'"),
        (["run", "tiny.toml", "--set"], "requires an argument"),
        (["verify-resume", "tiny.toml", "--steps", "few"], "'few' is not a valid integer"),
        (
            ["verify-resume", "tiny.toml", "--steps", "4", "--interrupt-at", "4"],
            "less than --steps",
        ),
        (["plugins", "shwo"], "shwo"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(sft, arguments, sentence):
    ended = sft(*arguments)
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.out == ""
