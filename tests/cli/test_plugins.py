"""`plugins`, `plugins show` and `plugins trace`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sft_engine.components import SINGLE_KINDS
from sft_engine.plugins import load_plugins
from sft_engine.testing import install_fake

# --- list ------------------------------------------------------------------------------------------


def test_lists_distributions_verbs_and_components(sft):
    ended = sft("plugins")
    assert ended.code == 0
    assert re.search(r"^  sft-tiny 1\.0 +9 components$", ended.out, re.MULTILINE)
    assert re.search(r"^  greet +Greet somebody\.$", ended.out, re.MULTILINE)
    assert re.search(r"^  tiny/text +A tiny network\.$", ended.out, re.MULTILINE)
    assert re.search(r"^optimizer, turns gradients into steps:$", ended.out, re.MULTILINE)


def test_the_list_as_json_has_every_component(sft):
    result = json.loads(sft("plugins", "--json").out)
    assert {"name": "tiny", "distribution": "sft-tiny", "version": "1.0"}.items() <= next(
        plugin.items() for plugin in result["plugins"] if plugin["name"] == "tiny"
    )
    assert "greet" in result["verbs"]
    assert result["verbs"] == sorted(result["verbs"])
    assert result["broken"] == []
    assert len(result["components"]) == len(load_plugins().catalog.entries())


@pytest.fixture
def broken(tmp_path, monkeypatch):
    folder = tmp_path / "broken"
    install_fake(
        folder,
        "sft-broken",
        {"sft_broken": "import absent_module"},
        entry_points={"b": "sft_broken"},
    )
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_is_listed_with_its_error_and_hides_no_other(sft):
    ended = sft("plugins")
    assert ended.code == 0
    words = " ".join(ended.out.split())  # a narrow terminal breaks the line
    cause = "ModuleNotFoundError: No module named 'absent_module'"
    assert f"sft-broken 1.0 cannot be loaded: {cause}" in words
    assert "tiny/text" in ended.out
    (plugin,) = json.loads(sft("plugins", "--json").out)["broken"]
    assert plugin["distribution"] == "sft-broken"
    assert "absent_module" in plugin["error"]


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_is_named_where_a_component_is_missed(sft):
    assert "sft-broken 1.0 cannot be loaded" in sft("plugins", "show", "nothing-like-it").err


# --- show ------------------------------------------------------------------------------------------


def test_show_prints_options_origin_and_a_snippet(sft):
    ended = sft("plugins", "show", "tiny/pull", "--kind", "regularizer")
    assert ended.code == 0
    assert ended.out.startswith("regularizer tiny/pull: Pull weights towards zero.\n")
    assert "sft-tiny 1.0, sft_tiny_parts:Pull" in ended.out
    assert "alpha  Strength of the pull. (a number; default 0.01)" in ended.out
    assert ended.out.endswith('[[regularizer]]\nuse = "tiny/pull"\nalpha = 0.01\n')


def test_show_without_a_kind_shows_every_component_of_that_name(sft):
    shown = json.loads(sft("plugins", "show", "tiny/pull", "--json").out)["components"]
    assert [each["kind"] for each in shown] == ["schedule", "regularizer"]


def test_show_a_distribution(sft):
    shown = json.loads(sft("plugins", "show", "sft-tiny", "--json").out)["components"]
    assert {each["name"] for each in shown} >= {"tiny/text", "tiny/pull"}
    assert len(shown) == 9


def test_show_as_json_says_what_is_needed(sft):
    (csv,) = json.loads(sft("plugins", "show", "csv", "--json").out)["components"]
    options = {option["name"]: option for option in csv["options"]}
    assert options["path"]["required"] is True
    assert options["delimiter"]["default"] == ","
    assert options["delimiter"]["help"]


@pytest.mark.parametrize("arguments", [["adamv"], ["adamv", "--kind", "optimizer"]])
def test_show_suggests_a_name(sft, arguments):
    ended = sft("plugins", "show", *arguments)
    assert ended.code == 2
    assert "did you mean `adam" in ended.err


def test_show_looks_in_the_kind_alone(sft):
    ended = sft("plugins", "show", "csv", "--kind", "task")
    assert ended.code == 2
    assert "allowed: `audio-classification`, " in ended.err


def test_the_snippet_of_every_component_passes_check(sft):
    base = Path("tiny.toml").read_text()
    shown = [
        each
        for name in ("sft-engine", "sft-tiny")
        for each in json.loads(sft("plugins", "show", name, "--json").out)["components"]
    ]
    assert len(shown) > 20
    for each in shown:
        # An option without a default that is no text, and None, which TOML cannot say, stand as `…`.
        snippet = re.sub(r"^\w+ = …\n", "", each["snippet"], flags=re.MULTILINE)
        text = base
        if each["kind"] in SINGLE_KINDS:
            text = re.sub(rf"\[{each['kind']}\]\n(?:(?!\[).*\n)*", "", base)
        Path("snippet.toml").write_text(text + snippet)
        ended = sft("check", "snippet.toml")
        needed = {o["name"] for o in each["options"] if o["required"]}
        missing = set(re.findall(r"`[\w\[\]]+\.(\w+)`: missing", ended.err))
        assert missing <= needed
        assert ended.code == 0 or missing, (each["name"], ended.err)


# --- trace -----------------------------------------------------------------------------------------


@pytest.fixture
def traced_recipe():
    text = Path("tiny.toml").read_text()
    parts = '[[regularizer]]\nuse = "tiny/pull"\n[[probe]]\nuse = "tiny/same"\n'
    Path("traced.toml").write_text(text + parts)
    return "traced.toml"


def test_trace_says_what_each_hook_did(sft, traced_recipe, folder):
    ended = sft("plugins", "trace", traced_recipe, "--steps", "2", "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["steps"] == 2
    rows = {(row["component"], row["hook"]): row for row in result["hooks"]}
    pull = {hook: row for (key, hook), row in rows.items() if key == "regularizer[0]"}
    assert {hook: row["calls"] for hook, row in pull.items()} == {
        "sft_train_start": 1,
        "sft_epoch_start": 1,
        "sft_epoch_end": 0,  # two steps end no epoch
        "sft_batch": 2,
        "sft_loss_terms": 2,
        "sft_gradients": 2,
        "sft_step_end": 2,
    }
    assert pull["sft_train_start"]["changes"] == {"requires_grad: embeddings.weight": 1}
    assert pull["sft_loss_terms"]["changes"] == {"loss term: pull": 2}
    assert pull["sft_gradients"]["changes"] == {"gradients: head.bias": 2}
    assert pull["sft_batch"]["changes"] == {"batch: ids": 2}
    assert pull["sft_step_end"]["changes"] == {"weights: norm.bias": 2}
    assert pull["sft_epoch_start"]["changes"] == {}
    views = rows["probe[0]", "sft_eval_views"]["changes"]
    assert set(views) == {"view: same"}
    assert set(rows["probe[0]", "sft_metrics"]["changes"]) == {"metric: seen"}
    assert all(row["seconds"] >= 0 for row in rows.values())
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.toml", "traced.toml"]


def test_the_trace_is_a_table_with_the_hooks_that_never_fired(sft, traced_recipe):
    ended = sft("plugins", "trace", traced_recipe, "--steps", "1")
    assert ended.code == 0
    assert re.search(r"regularizer\[0\] tiny/pull +sft_loss_terms +1 +\d", ended.out)
    assert re.search(r"sft_epoch_end +0 +0\.0 +never called", ended.out)
    assert ended.out.splitlines()[-1].startswith("1 steps, ")


def test_a_recipe_without_listeners_says_so(sft):
    ended = sft("plugins", "trace", "tiny.toml", "--steps", "1")
    assert "implements a hook" in ended.out
