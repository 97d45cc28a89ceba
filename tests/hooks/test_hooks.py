"""Every hook fires when and where its docstring says, and may change what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sft_engine import DivergedError, hookspecs
from sft_engine.dispatch import RUN_HOOKS
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe

sys.path.insert(0, str(Path(__file__).parent))
import listeners

COMPONENTS = {
    ("extension", f"test/{name.lower()}"): f"listeners:{name}"
    for name in ("Listener", "Term", "Judge", "Freeze", "Rescale", "Twice", "Bad", "Poison")
}


def events(folder, *extensions, overrides=(), **options):
    """Run the tiny recipe with extensions, given as TOML lines, and return what they noted."""
    listeners.EVENTS.clear()
    text = TINY + "".join(f"[[extension]]\nuse = {line}\n" for line in extensions)
    run_recipe(folder / "run", text, overrides, COMPONENTS, **options)
    return list(listeners.EVENTS)


def only(noted, *names):
    return [event for event in noted if event[0] in names]


def metrics(folder, kind):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.fixture(scope="module")
def timeline(tmp_path_factory):
    """One epoch of three windows, the first two of two micro-batches each."""
    folder = tmp_path_factory.mktemp("timeline")
    overrides = ["train.epochs=1", "train.micro_batch_size=8", "evaluation.batch_size=8"]
    return events(folder, '"test/listener"', overrides=overrides)


def test_order_of_events(timeline):
    micro = [
        ("batch", 8),
        ("micro_step before",),
        ("loss_terms", (8, 2)),
        ("micro_step after", True),
    ]
    step = [*micro, *micro, ("gradients",), ("step_verdict", 0), ("step_end", True)]
    evaluation = [("eval_batch", "validation", 8, False), ("metrics", "validation", True)]
    final = [("eval_batch", "test", 8, False), ("metrics", "test", True)]
    noted = [e for e in timeline if e[0] != "log"]
    splits, rest = noted[:3], noted[3:]
    assert splits == [
        ("build_data", name, size) for name, size in (("train", 48), ("validation", 8), ("test", 8))
    ]
    assert rest == [
        ("build_model", True),
        ("param_groups", 9, True),
        ("setup", 0, True),
        ("train_start",),
        ("phase_start",),
        ("epoch_start", 0),
        *[event for i in range(3) for event in (("step_start", i), *step)],
        ("epoch_end", 0),
        ("eval_views", "validation"),
        *evaluation,
        ("phase_end",),
        ("train_end",),
        ("eval_views", "test"),
        *final,
        ("report", "test"),
        ("save_model", False, False),
        ("teardown", "NoneType"),
    ]


def test_every_hook_has_a_test():
    tests = {name.removeprefix("test_hook_") for name in globals() if name.startswith("test_hook_")}
    hooks = {name for name in vars(hookspecs) if name.startswith("sft_")}
    assert hooks - tests == set()
    assert set(RUN_HOOKS) < hooks


def test_components_run_in_recipe_order_and_end_in_the_opposite_one(tmp_path):
    noted = events(
        tmp_path,
        '"test/listener"\nname = "first"',
        '"test/listener"\nname = "second"',
        overrides=["train.steps=1"],
    )

    def order(hook):
        return [event[1] for event in noted if event[0] == hook][:2]

    for hook in ("setup", "train_start", "step_start", "gradients", "batch", "loss_terms"):
        assert order(hook) == ["first", "second"], hook
    for hook in ("step_end", "phase_end", "train_end", "teardown"):
        assert order(hook) == ["second", "first"], hook
    assert order("micro_step before") == ["first", "second"]
    assert order("micro_step after") == ["second", "first"]


def test_hook_sft_register():
    from sft_engine.testing.runs import tiny_plugins

    entry = tiny_plugins(COMPONENTS).catalog.get("extension", "test/listener")
    assert entry.target == "listeners:Listener"


def test_hook_sft_check_recipe():
    from types import ModuleType

    from sft_engine import Problem, RecipeError, hookimpl
    from sft_engine.catalog import plan
    from sft_engine.recipe import parse_recipe
    from sft_engine.testing.runs import tiny_plugins

    asked = []
    plugin = ModuleType("strict")

    @hookimpl
    def sft_check_recipe(recipe):
        asked.append(recipe.tables["seed"])
        return (
            [Problem("seed", "found 1, allowed: 2", "set it")] if recipe.tables["seed"] == 1 else []
        )

    @hookimpl
    def sft_register(catalog):
        catalog.add("extension", "strict/one", "listeners:Term", "A term.")

    plugin.sft_check_recipe, plugin.sft_register = sft_check_recipe, sft_register
    plugins = tiny_plugins()
    plugins.add(plugin, "strict", "sft-strict", "1")
    named = TINY + '[[extension]]\nuse = "strict/one"\n'
    plan(parse_recipe("seed = 1\n" + TINY), plugins)
    assert asked == []  # installed is not active
    plan(parse_recipe("seed = 2\n" + named), plugins)
    with pytest.raises(RecipeError, match=r"`seed`: found 1, allowed: 2"):
        plan(parse_recipe("seed = 1\n" + named), plugins)
    assert asked == [2, 1]


def test_hook_sft_study_report(tmp_path):
    from types import ModuleType

    from sft_engine import hookimpl
    from sft_engine.sections import add_section, text
    from sft_engine.testing.runs import tiny_plugins

    plugin = ModuleType("studious")

    @hookimpl
    def sft_study_report(folder, study, report):
        add_section(report, "more", "More", [text(f"{folder.name}: {study['state']}")])

    plugin.sft_study_report = sft_study_report
    plugins = tiny_plugins()
    plugins.add(plugin, "studious", "sft-studious", "1")
    report = {}
    plugins.report_study({"sft-engine"}, tmp_path / "s", {"state": "complete"}, report)
    assert report == {}  # installed is not active
    plugins.report_study({"sft-studious"}, tmp_path / "s", {"state": "complete"}, report)
    assert report["sections"][0]["blocks"][0]["text"] == "s: complete"


def test_hook_sft_cli():
    from types import ModuleType

    import click

    from sft_engine import hookimpl
    from sft_engine.testing.runs import tiny_plugins

    plugin = ModuleType("verbs")

    @hookimpl
    def sft_cli(group):
        group.add_command(click.Command("hello"))

    plugin.sft_cli = sft_cli
    plugins, group = tiny_plugins(), click.Group()
    plugins.add(plugin, "verbs", "sft-verbs", "1")
    plugins.add_commands(group)
    assert "hello" in group.commands


def test_hook_sft_build_data(tmp_path, timeline):
    assert only(timeline, "build_data")[0] == ("build_data", "train", 48)
    noted = events(tmp_path, '"test/rescale"\nwhere = "data"', overrides=["train.epochs=2"])
    draws = [event[1:] for event in only(noted, "transform")]
    assert len(draws) == 96  # each training example once an epoch, no validation example
    assert len(set(draws)) == 96  # and with other draws in the second epoch


def test_hook_sft_build_model(tmp_path, timeline):
    assert only(timeline, "build_model") == [("build_model", True)]
    noted = events(
        tmp_path, '"test/rescale"\nwhere = "model"', '"test/judge"', overrides=["train.steps=1"]
    )
    first = only(noted, "weights")[0][2]
    assert any(w.ndim == 2 and (w == 0).all() for w in first)


def test_hook_sft_param_groups(tmp_path, timeline):
    assert only(timeline, "param_groups") == [("param_groups", 9, True)]
    noted = events(
        tmp_path,
        '"test/rescale"\nwhere = "groups"',
        '"test/freeze"\nuntil = 0',
        overrides=["train.steps=3"],
    )
    embeddings = [event[2] for event in only(noted, "embeddings")]
    assert all(torch.equal(e, embeddings[0]) for e in embeddings)  # their rate is scaled by zero


def test_hook_sft_setup(timeline):
    assert only(timeline, "setup") == [("setup", 0, True)]


def test_hook_sft_train_start(timeline):
    assert len(only(timeline, "train_start")) == 1


def test_hook_sft_train_end(timeline):
    assert len(only(timeline, "train_end")) == 1


def test_hook_sft_phase_start(timeline):
    assert len(only(timeline, "phase_start")) == 1


def test_hook_sft_phase_end(timeline):
    assert len(only(timeline, "phase_end")) == 1


def test_hook_sft_epoch_start(tmp_path):
    noted = events(tmp_path, '"test/listener"', overrides=["train.epochs=1.67"])
    assert only(noted, "epoch_start", "epoch_end") == [
        ("epoch_start", 0),
        ("epoch_end", 0),
        ("epoch_start", 1),  # the second epoch is left after two of three windows
    ]


def test_hook_sft_epoch_end(timeline):
    assert only(timeline, "epoch_end") == [("epoch_end", 0)]


def test_hook_sft_step_start(tmp_path):
    noted = events(tmp_path, '"test/freeze"\nuntil = 3')
    embeddings = [event[2] for event in only(noted, "embeddings")]
    assert all(torch.equal(e, embeddings[0]) for e in embeddings[:4])  # weight decay included
    assert not torch.equal(embeddings[4], embeddings[3])


def test_learning_rates_are_multiplied_by_all_factors_of_the_step(tmp_path):
    noted = events(
        tmp_path,
        '"test/rescale"\nwhere = "factors"',
        '"test/judge"\nat = -1',
        overrides=["train.steps=4", "schedule.use=constant", "optimizer.lr=0.01"],
    )
    assert [r["lr"] for r in metrics(tmp_path, "train")] == [0.005, 0.0, 0.005, 0.005]
    before = [event[2] for event in only(noted, "weights")]
    assert all(map(torch.equal, before[1], before[2]))  # weight decay included
    assert not all(map(torch.equal, before[2], before[3]))


def test_hook_sft_batch(tmp_path):
    noted = events(
        tmp_path,
        '"test/rescale"\nwhere = "batch"',
        '"test/judge"',
        overrides=["train.steps=2", "optimizer.use=sgd", "optimizer.lr=0.1"],
    )
    before, after = (event[2][0] for event in only(noted, "weights"))
    moved = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert moved == [1]  # the batch held nothing but the letter 1


def test_hook_sft_micro_step(tmp_path):
    noted = events(tmp_path, '"test/twice"', overrides=["train.steps=2"])
    assert only(noted, "twice") == [("twice", True)] * 2


@pytest.mark.parametrize("per", ["step", "item"])
def test_hook_sft_loss_terms(tmp_path, per):
    events(
        tmp_path,
        f'"test/term"\nvalue = 3.0\nweight = 0.5\nper = "{per}"',
        overrides=["train.micro_batch_size=4"],
    )
    # Counted once a window, however many micro-batches it has.
    assert [r["loss/extra"] for r in metrics(tmp_path, "train")] == pytest.approx([1.5] * 6)
    for record in metrics(tmp_path, "train"):
        assert record["loss"] == pytest.approx(record["loss/task"] + 1.5)


def test_hook_sft_gradients(tmp_path):
    noted = events(
        tmp_path,
        '"test/rescale"',
        '"test/judge"',
        overrides=["train.steps=2", "optimizer.use=sgd", "optimizer.weight_decay=0"],
    )
    before, after = (event[2] for event in only(noted, "weights"))
    assert all(map(torch.equal, before, after))


def test_replaying_a_window_gives_the_same_gradients(tmp_path):
    noted = events(
        tmp_path,
        '"test/rescale"\nwhere = "replay"',
        overrides=["train.steps=2", "train.micro_batch_size=4", "backbone.dropout=0.3"],
    )
    assert only(noted, "replayed") == [("replayed", True)] * 2
    losses = [r["loss"] for r in metrics(tmp_path, "train")]
    other = tmp_path / "plain"
    events(
        other,
        overrides=["train.steps=2", "train.micro_batch_size=4", "backbone.dropout=0.3"],
    )
    assert losses == [r["loss"] for r in metrics(other, "train")]  # replays are not logged


@pytest.mark.parametrize("action", ["SKIP", "ROLL_BACK"])
def test_hook_sft_step_verdict(tmp_path, action):
    noted = events(tmp_path, f'"test/judge"\naction = "{action}"\nat = 2')
    weights = {event[1]: event[2] for event in only(noted, "weights")}
    same = [all(map(torch.equal, weights[i], weights[i + 1])) for i in range(5)]
    assert same == [False, False, True, False, False]
    (record,) = metrics(tmp_path, "verdict")
    assert record["step"] == 2
    assert record["reason"] == "asked to"
    assert len(record["examples"]) == 16


def test_a_verdict_of_stop_ends_the_run(tmp_path):
    with pytest.raises(DivergedError, match="stopped at step 2: asked to"):
        events(tmp_path, '"test/judge"\naction = "STOP"')


def test_hook_sft_step_end(tmp_path, timeline):
    assert only(timeline, "step_end") == [("step_end", True)] * 3
    noted = events(tmp_path, '"test/rescale"\nwhere = "weights"', '"test/judge"')
    assert any((w == 7.0).all() for w in only(noted, "weights")[1][2])


def test_hook_sft_eval_views(tmp_path):
    events(tmp_path, '"test/rescale"\nwhere = "view"')
    views = [(r["split"], r["view"]) for r in metrics(tmp_path, "evaluation")]
    one = [("validation", ""), ("validation", "blind"), ("validation", "zero")]
    assert views == [*one, *one, ("test", ""), ("test", "blind"), ("test", "zero")]
    blind = [r for r in metrics(tmp_path, "evaluation") if r["view"]]
    # A model that sees the same text everywhere has one answer.
    for record in blind:
        predicted = [sum(column) for column in zip(*record["confusion_matrix"], strict=True)]
        assert 0 in predicted


def test_hook_sft_eval_batch(timeline):
    assert ("eval_batch", "validation", 8, False) in timeline


def test_hook_sft_metrics(tmp_path):
    events(tmp_path, '"test/rescale"\nwhere = "stop"')
    records = metrics(tmp_path, "evaluation")
    assert all(r["extra"] == 0.5 for r in records)
    assert [r["split"] for r in records] == ["validation", "test"]  # stopped after one epoch
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reason"] == "a component asked to"


def test_hook_sft_log(tmp_path):
    noted = events(tmp_path, '"test/listener"')
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line)["kind"] for line in lines]
    assert [event[1] for event in only(noted, "log")] == written


def test_hook_sft_report(tmp_path):
    events(tmp_path, '"test/rescale"')
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["section"] == {"hello": 1}


def test_hook_sft_save_model(tmp_path, timeline):
    """It changes a copy: what trains stays as it is; what it writes stands beside the model."""
    assert only(timeline, "save_model") == [("save_model", False, False)]
    noted = events(tmp_path, '"test/rescale"\nwhere = "save"', overrides=["train.steps=1"])
    assert only(noted, "kept") == [("kept", True)]
    saved = load_file(tmp_path / "run/model/model.safetensors")
    assert not saved["head.weight"].any()
    assert saved["head.bias"].any()
    assert (tmp_path / "run/model/beside/note.txt").read_text() == "here"


def test_a_finished_run_says_that_it_is_one(tmp_path):
    """So that what was taken off before saving is not put on again; components are asked anew."""
    from sft_engine.assemble import reopen

    events(tmp_path, '"test/listener"', overrides=["train.steps=1"])
    plan = plan_recipe(TINY + '[[extension]]\nuse = "test/listener"\n', components=COMPONENTS)
    assert reopen(plan, tmp_path / "run", ("a", "b"), {}).run.reopened
    assert listeners.EVENTS[-1] == ("build_model", True)


def test_hook_sft_teardown(tmp_path):
    with pytest.raises(ValueError, match="boom") as caught:
        events(tmp_path, '"test/listener"', '"test/bad"')
    assert listeners.EVENTS[-1] == ("teardown", "ValueError")
    assert 'extension[1] "test/bad" of sft-engine-testing 0' in "".join(caught.value.__notes__)


def test_an_error_while_ending_does_not_hide_the_first_one(tmp_path):
    with pytest.raises(ValueError, match=r"^boom(?! at the end)"):
        events(tmp_path, '"test/bad"', '"test/bad"\nhook = "sft_teardown"')


def test_hooks_that_nobody_implements_cost_no_call(tmp_path, monkeypatch):
    import pluggy

    calls = []
    original = pluggy.HookCaller.__call__

    def counted(self, **kwargs):
        calls.append(self.name)
        return original(self, **kwargs)

    monkeypatch.setattr(pluggy.HookCaller, "__call__", counted)
    events(tmp_path)
    assert [name for name in calls if name in RUN_HOOKS] == []
