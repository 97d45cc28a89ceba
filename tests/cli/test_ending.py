"""How commands end: exit codes, sentences, ranks, broken pipes, Ctrl-C."""

from __future__ import annotations

import json
import signal

import click
import pytest

from sft_engine.cli import ending
from sft_engine.cli.ending import exit_code_of
from sft_engine.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Interrupted,
    OutputError,
    RecipeError,
    SftError,
)

CODES = {
    SftError: 1,
    OutputError: 1,
    CheckpointError: 1,
    RecipeError: 2,
    DataError: 3,
    DivergedError: 4,
    Interrupted: 75,
}


def command_that_raises(error):
    @click.command()
    @click.option("--json", is_flag=True)
    @click.argument("rest", nargs=-1)
    def command(**_):
        raise error

    return command


def alone(monkeypatch, rank=None):
    for name in ending._RANKS:
        monkeypatch.delenv(name, raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", str(rank))


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_each_problem_has_its_code_and_is_a_sentence(capsys, monkeypatch, kind, code):
    alone(monkeypatch)
    assert exit_code_of(command_that_raises(kind("it broke.")), []) == code
    assert capsys.readouterr() == ("", "error: it broke.\n")


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_with_json_it_is_an_object(capsys, monkeypatch, kind, code):
    alone(monkeypatch)
    assert exit_code_of(command_that_raises(kind("größer")), ["--json"]) == code
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"error": "größer", "exit_code": code}, "")


def test_json_behind_two_dashes_is_a_text(capsys):
    assert exit_code_of(command_that_raises(DataError("it broke.")), ["--", "--json"]) == 3
    assert capsys.readouterr().out == ""


def test_several_problems_are_several_lines(capsys):
    exit_code_of(command_that_raises(RecipeError("one.\ntwo.")), [])
    assert capsys.readouterr().err == "error: one.\nerror: two.\n"


def test_a_note_on_the_component_is_shown(capsys):
    error = DataError("no such column.")
    error.add_note('in data "csv" of sft-engine 0.1.0')
    exit_code_of(command_that_raises(error), [])
    assert capsys.readouterr().err == (
        'error: no such column. (in data "csv" of sft-engine 0.1.0)\n'
    )


def test_a_bug_is_raised_and_with_json_an_object_too(capsys):
    with pytest.raises(ZeroDivisionError):
        exit_code_of(command_that_raises(ZeroDivisionError("oops")), ["--json"])
    assert json.loads(capsys.readouterr().out) == {
        "error": "ZeroDivisionError: oops",
        "exit_code": 1,
    }


@pytest.mark.parametrize("kind", [SftError, RecipeError, DataError, OutputError, CheckpointError])
def test_another_rank_says_its_number(capsys, monkeypatch, kind):
    alone(monkeypatch, rank=1)
    assert exit_code_of(command_that_raises(kind("mine.")), ["--json"]) == CODES[kind]
    assert capsys.readouterr() == ("", "[rank 1] error: mine.\n")


@pytest.mark.parametrize("kind", [DivergedError, Interrupted])
def test_another_rank_is_silent_where_all_agree(capsys, monkeypatch, kind):
    alone(monkeypatch, rank=1)
    assert exit_code_of(command_that_raises(kind("all of us.")), []) == CODES[kind]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rank", "elsewhere", "said"),
    [
        (0, False, "error: it broke.\n"),
        (0, True, "error: it broke.\n"),
        (1, False, "[rank 1] error: it broke.\n"),
        (1, True, ""),
    ],
)
def test_what_happened_elsewhere_is_said_by_rank_0(capsys, monkeypatch, rank, elsewhere, said):
    alone(monkeypatch, rank=rank)
    error = DataError("it broke.")
    error.elsewhere = elsewhere
    assert exit_code_of(command_that_raises(error), []) == 3
    assert capsys.readouterr().err == said


def test_rank_0_says_what_all_agree_upon(capsys, monkeypatch):
    alone(monkeypatch, rank=0)
    exit_code_of(command_that_raises(Interrupted("all of us.")), [])
    assert capsys.readouterr().err == "error: all of us.\n"


def test_the_rank_is_read_from_mpi_as_well(monkeypatch):
    alone(monkeypatch)
    assert ending.rank() == 0
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    assert ending.rank() == 3


def test_another_rank_prints_no_result(sft, monkeypatch):
    alone(monkeypatch, rank=1)
    ended = sft("check", "tiny.toml")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


WAITING = """
import signal
import time
import click
from sft_engine.cli.ending import exit_code_of

# A job that a shell started in the background ignores it, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

@click.command()
@click.option("--json", is_flag=True)
def wait(json):
    print("ready", flush=True)
    time.sleep(60)

raise SystemExit(exit_code_of(wait, {arguments!r}))
"""


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_ctrl_c_outside_of_training(start, arguments):
    process = start(code=WAITING.format(arguments=arguments))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    if arguments:
        assert json.loads(out) == {"error": "stopped by Ctrl-C.", "exit_code": 130}
    else:
        assert err.strip() == "error: stopped by Ctrl-C."


@pytest.mark.parametrize("verb", ["plugins", "schema", "new-recipe"])
def test_a_closed_pipe_is_no_error(start, verb):
    process = start(verb)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_the_module_and_the_script_are_the_same(start):
    script = (
        "import sys; sys.argv = ['anything', '--version']; import sft_engine.cli as c; c.main()"
    )
    outputs = [start("--version").communicate()[0], start(code=script).communicate()[0]]
    assert outputs[0] == outputs[1] != ""
