"""`sft-engine lr-find` as a user calls it: result, picture, and what it writes into the recipe."""

from __future__ import annotations

import builtins
import importlib
import json
import re
import sys

import pytest

from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.lr_range.applying import set_number
from sft_engine.lr_range.picture import text_plot
from sft_engine.lr_range.sweep import RangeTest
from sft_engine.recipe import load_recipe
from sft_engine.testing import install_fake

PLUGIN = """
from sft_engine import hookimpl

@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "A tiny network.")
"""
RECIPE = """# A recipe of ours.
[task]
use = "text-classification"
[data]
use = "tiny/texts"  # random words
validation = 8
test = 8
[backbone]
use = "tiny/text"
[optimizer]
use = "adamw"
lr = 5e-5        # found by hand
weight_decay = 0.1
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
"""
RANGE = ("--min", "1e-5", "--max", "10", "--steps", "40")


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install_fake(site, "sft-lrtiny", {"sft_lrtiny": PLUGIN}, entry_points={"t": "sft_lrtiny"})
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(site))
    sys.modules.pop("sft_lrtiny", None)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def sft(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = exit_code_of(cli, ["lr-find", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_shows_a_curve_and_a_result_and_writes_nothing(sft, folder):
    code, out, err = sft("tiny.toml", *RANGE)
    assert (code, err) == (0, "")
    assert out.count("*") > 20
    assert re.search(r"result    optimizer.lr = \S+ \(valley; the recipe has 5e-05\)", out)
    assert (folder / "tiny.toml").read_text() == RECIPE
    assert names(folder) == ["tiny.toml"]


def test_apply_changes_the_number_alone_and_says_so(sft, folder):
    code, out, _ = sft("tiny.toml", *RANGE, "--apply", "--rule", "minimum", "--quiet")
    assert code == 0
    found = re.fullmatch(r"applied   tiny.toml:12: optimizer.lr: 5e-05 -> (\S+) \(minimum\)\n", out)
    lr = float(found[1])
    assert load_recipe("tiny.toml").tables["optimizer"]["lr"] == lr
    before, after = RECIPE.splitlines(), (folder / "tiny.toml").read_text().splitlines()
    assert [i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1] == [11]
    assert after[11].endswith("# found by hand")


def test_json_and_numbers_in_a_file(sft, folder):
    code, out, _ = sft("tiny.toml", *RANGE, "--json", "--output", "lr.json")
    printed, written = json.loads(out), json.loads((folder / "lr.json").read_text())
    assert code == 0
    assert printed["suggestions"] == written["suggestions"]
    assert set(written["suggestions"]) == {"valley", "steepest", "minimum"}
    assert len(written["lrs"]) == len(written["losses"]) == len(written["smoothed"])
    assert (printed["rule"], printed["applied"]) == ("valley", None)


@pytest.mark.parametrize(("name", "begin"), [("lr.png", b"\x89PNG"), ("lr.svg", b"<?xml")])
def test_a_picture(sft, folder, name, begin):
    code, _, err = sft("tiny.toml", *RANGE, "--output", name)
    assert (code, err) == (0, "")
    assert (folder / name).read_bytes().startswith(begin)
    assert names(folder) == [name, "tiny.toml"]


def test_without_matplotlib_a_picture_is_refused_before_training(sft, folder, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    code, out, err = sft("tiny.toml", "--output", "lr.png")
    assert (code, out) == (1, "")
    assert "pip install 'sft-engine[plot]'" in err
    assert names(folder) == ["tiny.toml"]
    assert sft("tiny.toml", *RANGE)[0] == 0  # the curve on the terminal needs none


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--min", "1", "--max", "0.1"], 2, "found 1, allowed: less than --max (0.1)"),
        (["--output", "lr.pdf"], 1, "found the ending '.pdf', allowed: .png, .svg, .json"),
        (["--output", "no/lr.json"], 1, "there is no folder no"),
        (["--set", "optimizer.use=sgd", "--apply"], 2, "changes `optimizer`, and --apply writes"),
    ],
)
def test_mistakes_are_one_sentence(sft, folder, arguments, code, sentence):
    found, out, err = sft("tiny.toml", *arguments)
    assert (found, out) == (code, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert (folder / "tiny.toml").read_text() == RECIPE


def test_a_loss_that_never_falls_suggests_and_applies_nothing(sft, folder):
    never = ("--min", "1e-20", "--max", "1e-19", "--steps", "10", "--apply")
    code, out, err = sft("tiny.toml", *never, "--set", "backbone.depth=0")
    assert code == 2
    assert "suggests no `optimizer.lr`" in err
    assert "applied" not in out
    assert (folder / "tiny.toml").read_text() == RECIPE


# --- writing into a recipe ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "before"),
    [
        ("seed = 1\r\n[optimizer]\r\nlr = 1.0 # one\r\n", 3, 1.0),
        ("optimizer = {use = 'sgd', lr = 0.1}  # in one line\n", 1, 0.1),
        ("optimizer.use = 'sgd'\noptimizer.lr = 0.1\n[task]\nuse = 'x'\n", 2, 0.1),
        ("extends = 'other.toml'\n# the end\n", 5, None),
        ("[optimizer]\nuse = 'sgd'\n\n[train]\nsteps = 3\n", 3, None),
    ],
)
def test_a_number_is_set_wherever_the_recipe_has_it(folder, text, line, before):
    path = folder / "other.toml"
    path.write_bytes(text.encode())
    change = set_number(path, ("optimizer", "lr"), 0.003)
    after = path.read_bytes().decode()
    assert (change.line, change.before, change.after) == (line, before, 0.003)
    assert "0.003" in after.splitlines()[line - 1]
    for comment in re.findall("#.*", text):
        assert comment.strip() in after
    assert ("\r\n" in text) == ("\r\n" in after)


def test_a_phase_s_own_rate_is_set_there(folder):
    path = folder / "phases.toml"
    path.write_text('[[phase]]\nname = "a"\nlr = 1e-3\n[[phase]]\nname = "b"\nlr = 1e-4\n')
    change = set_number(path, ("phase", 0, "lr"), 0.5)
    assert (change.key, change.line, change.before) == ("phase[0].lr", 3, 0.001)
    assert path.read_text().splitlines()[2:] == ["lr = 0.5", "[[phase]]", 'name = "b"', "lr = 1e-4"]


def test_a_phase_of_an_inherited_recipe_is_set_where_it_is_written(sft, folder):
    phase = '[[phase]]\nname = "a"\nlr = 1e-3\n'
    (folder / "parent.toml").write_text(RECIPE + phase)
    (folder / "child.toml").write_text('extends = "parent.toml"\n')
    code, _, err = sft("child.toml", "--apply")
    assert code == 2
    assert "child.toml: `phase[0]` is written in parent.toml: apply the learning rate there" in err
    code, out, _ = sft("parent.toml", *RANGE, "--apply", "--quiet")
    assert code == 0
    assert out.startswith("applied   parent.toml:20: phase[0].lr: 0.001 -> ")


def test_the_text_plot_shows_the_fall_from_top_left_to_bottom_right():
    lrs, losses = [1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.8, 0.2, 40.0]
    lines = text_plot(RangeTest("optimizer.lr", 0.1, lrs, losses, losses), width=31, height=5)
    rows = [line.partition("|")[2] for line in lines[:5]]
    stars = [[i for i, mark in enumerate(row) if mark == "*"] for row in rows]
    assert stars == [[30], [0, 10], [], [], [20]]  # the explosion is cut off at the top
