"""Searches on a tiny model: killed, resumed, pruned, several at once; and the mistakes of a user."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  to see that nothing loads one
import signal
from pathlib import Path

import pytest

from sft_engine import verbs
from sft_engine.recipe import load_recipe
from sft_engine.tuning import TuneSettings
from sft_engine.tuning.space import read_space
from sft_engine.tuning.store import Store, Terms

RECIPE = Path(__file__).with_name("tiny.toml").read_text()
LR = "optimizer.lr=log(1e-4, 1e-1)"
WIDTH = "backbone.width=int(4, 16, 4)"
USE = "schedule.use=one_of(constant, linear)"
SPACE = (LR, WIDTH, USE)


def tune(output, trials, overrides=SPACE, recipe="tiny.toml", **settings):
    return verbs.tune(
        recipe, output=output, overrides=overrides, settings=TuneSettings(trials=trials, **settings)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _installed):
    """A study of six trials that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(RECIPE)
    return tune(folder / "whole", 6, recipe=folder / "tiny.toml", prune=False)


def tried(tuned):
    """Return what each trial tried and reached, in the order of the run folders."""
    return sorted(
        (row.name, row.state, row.value, tuple(row.values.items())) for row in tuned.trials
    )


def command(output, trials):
    sets = [part for text in SPACE for part in ("--set", text)]
    return ["tune", "tiny.toml", *sets, "--trials", trials, "--output", output]


def steps_of(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r["step"] for r in map(json.loads, lines) if r["kind"] == "evaluation"]


def test_trials_are_run_folders_and_the_best_recipe_is_written(whole):
    tuned = whole
    assert [row.state for row in tuned.trials] == ["complete"] * 6
    assert (tuned.metric, tuned.direction) == ("accuracy", "max")
    assert tuned.best.value == max(row.value for row in tuned.trials)
    for row in tuned.trials:
        run = tuned.folder / "trials" / row.name
        assert {"recipe.toml", "run.json", "metrics.jsonl", "report.json", "model"} <= {
            path.name for path in run.iterdir()
        }
        report = json.loads((run / "report.json").read_text())
        assert (report["split"], report["metrics"]["accuracy"]) == ("validation", row.value)
        assert load_recipe(run / "recipe.toml").tables["optimizer"]["lr"] == float(
            row.values["optimizer.lr"]
        )
    best = load_recipe(tuned.recipe)
    overrides = [f"{key}={value}" for key, value in tuned.best.values.items()]
    assert best == load_recipe("tiny.toml").with_overrides(overrides)
    assert (
        Path(tuned.recipe)
        .read_text()
        .startswith("# Best of 6 complete trials: validation accuracy ")
    )


def test_a_study_goes_on_where_it_was_and_ends_when_it_has_enough(whole):
    assert len(tune("parted", 2).trials) == 2
    assert tried(tune("parted", 4)) == tried(whole)[:4]
    assert tried(tune("parted", 4)) == tried(whole)[:4]


@pytest.mark.slow
def test_killed_and_resumed_it_has_exactly_as_many_trials_as_asked_for(start, whole, monkeypatch):
    """Kill a study in its third trial, resume: six complete trials, equal to those of one never killed."""
    killed = start(*command("killed", 6), "--no-pruning", TUNE_END="SIGKILL 3 5")
    assert killed.wait() == -signal.SIGKILL, killed.output.read_text()
    assert json.loads(Path("killed/trials/trial-002/run.json").read_text())["status"] == "running"
    monkeypatch.setattr(pickle, "loads", None)  # nothing in the folder is a pickle
    resumed = tune("killed", 6, prune=False)
    assert [row.state for row in resumed.trials] == ["complete"] * 6
    assert tried(resumed) == tried(whole)
    # The third went on from its checkpoint after the first of three epochs, in the same folder.
    assert steps_of(Path("killed/trials/trial-002")) == steps_of(whole.folder / "trials/trial-002")
    assert len(list(Path("killed/trials").iterdir())) == 6


@pytest.mark.slow
def test_processes_share_a_study(start, whole):
    other = start(*command("shared", 6), "--no-pruning", "--quiet")
    tune("shared", 6, prune=False)
    assert other.wait() == 0, other.output.read_text()
    # The same proposals and results, whoever carried them out, in whatever order they ended.
    assert tried(tune("shared", 6, prune=False)) == tried(whole)


def test_what_holds_for_all_trials_holds_whatever_a_trial_chooses():
    space = ["schedule.use=one_of(linear, cosine)", "schedule.warmup=0.25", "train.steps=1"]
    tuned = tune("study", 3, space)
    recipes = [
        load_recipe(tuned.folder / "trials" / row.name / "recipe.toml") for row in tuned.trials
    ]
    assert {recipe.tables["schedule"]["use"] for recipe in recipes} == {"linear", "cosine"}
    assert {recipe.tables["schedule"]["warmup"] for recipe in recipes} == {0.25}
    assert load_recipe(tuned.recipe).tables["schedule"]["warmup"] == 0.25


def test_a_trial_whose_process_is_gone_is_tried_again(whole):
    recipe = load_recipe("tiny.toml")
    space, _ = read_space(SPACE)
    texts = {key: domain.text for key, domain in space.items()}
    terms = Terms(recipe.to_toml(), [], texts, "accuracy", "max", 0)
    alive, dead = (Store(Path("study"), terms, space) for _ in range(2))
    first, second = alive.begin(4), dead.begin(4)
    dead._locks[second.number].release()  # as the system does when a process dies
    again = alive.begin(4)
    assert (again.params, again.user_attrs["retry_of"]) == (second.params, second.number)
    assert alive.folder_of(again) == dead.folder_of(second)
    assert alive.begin(4).params not in (first.params, again.params)
    assert alive.begin(3) is None  # three run
    for lock in alive._locks.values():
        lock.release()
    assert tried(tune("study", 4)) == tried(whole)[:4]


def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(sft, whole, monkeypatch):
    import sft_tunetiny_parts

    monkeypatch.setattr(sft_tunetiny_parts, "runs", 0)
    monkeypatch.setenv("TUNE_END", "SIGINT 2 4")
    code, _, err = sft(*command("study", 3))
    assert (code, err) == (75, "error: trial-001 was interrupted: the same command goes on\n")
    assert (
        json.loads(Path("study/trials/trial-001/run.json").read_text())["status"] == "interrupted"
    )
    monkeypatch.delenv("TUNE_END")
    code, out, _ = sft(*command("study", 3))
    assert code == 0
    assert out.count("complete") == 3
    assert tried(tune("study", 3)) == tried(whole)[:3]


def test_a_trial_that_falls_behind_is_pruned():
    # Less is better: a learning rate that does nothing is worse from the first epoch on.
    space = ["optimizer.lr=one_of(1e-2, 2e-2, 1e-9)", "train.epochs=2"]
    tuned = tune("study", 10, space, metric="nll")
    assert tuned.direction == "min"
    assert float(tuned.best.values["optimizer.lr"]) > 1e-9
    pruned = [row for row in tuned.trials if row.state == "pruned"]
    assert "1e-9" in {row.values["optimizer.lr"] for row in pruned}
    assert {row.state for row in tuned.trials[:5]} == {"complete"}
    for row in pruned:
        report = json.loads(Path("study/trials", row.name, "report.json").read_text())
        assert report["reason"].startswith("pruned: nll")
        assert report["steps"] == len(steps_of(Path("study/trials", row.name))[:1]) * 3
    kept = tune("unpruned", 8, space, metric="nll", prune=False)
    assert {row.state for row in kept.trials} == {"complete"}


def test_a_run_that_diverges_or_needs_too_much_memory_is_a_result():
    ends = ["extension.0.nan=0.05", "extension.0.memory=0.02", "checkpoint.every_epochs=0"]
    lr = "optimizer.lr=one_of(0.01, 0.03, 0.06)"
    tuned = tune("study", 5, [lr, *ends])
    assert len(tuned.trials) == 5
    states = {row.values["optimizer.lr"]: (row.state, row.reason) for row in tuned.trials}
    assert states["0.01"] == ("complete", "")
    assert states["0.03"][0] == states["0.06"][0] == "failed"
    assert "gradient is nan" in states["0.06"][1]
    assert "memory does not suffice" in states["0.03"][1]


def test_the_command_shows_a_table_and_the_best(sft):
    code, out, err = sft(*command("study", 2))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    header = next(line for line in lines if line.startswith("trial ") and "state" in line)
    for part in ("accuracy", "optimizer.lr", "backbone.width", "schedule.use"):
        assert part in header
    assert lines[-1].startswith("best: trial-00")
    code, out, _ = sft(*command("study", 2), "--quiet")
    assert (code, out) == (0, "study/best.toml\n")
    code, out, _ = sft(*command("study", 2), "--json")
    assert len(json.loads(out)["trials"]) == 2


def test_without_a_complete_trial_there_is_no_best(sft):
    ends = ("--set", "extension.0.nan=1e-9")
    code, _, err = sft("tune", "tiny.toml", "--set", LR, *ends, "--trials", 1, "--output", "study")
    assert code == 1
    assert "none of 1 trials was completed (trial-000: the gradient is nan" in err
    assert not Path("study/best.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "there is nothing to search: give a key values"),
        (["optimizer.lr=log(1, 1)"], 2, "1 is not below 1; write `log(LOW, HIGH)`, both above 0"),
        (["optimizer.lr=log(0, 1)"], 2, "0 is not above 0, and has no logarithm"),
        (["optimizer.lr=lgo(1e-3, 1)"], 2, "there is no `lgo(...)`; did you mean `log`?"),
        (["train.epochs=int(1, 2.5)"], 2, "2.5 is no whole number"),
        (["train.epochs=int(1, 4, 9)"], 2, "9 is no step from 1 to 4"),
        (["schedule.use=one_of(linear)"], 2, "found linear; write `one_of(A, B, ...)`"),
        ([LR, "optimizer.lr=uniform(1, 2)"], 2, "`optimizer.lr` is searched twice"),
        (["schedule.use=one_of(linear, cosin)"], 2, "did you mean `cosine`?"),
        (["optimizer.lr=uniform(-1, 1)"], 2, "`optimizer.lr`"),
        (["optimiser.lr=log(1e-3, 1)"], 2, "did you mean `optimizer`?"),
        ([LR, "data.validation=0"], 3, "the data has none: set `data.validation`"),
    ],
)
def test_mistakes_are_one_sentence(sft, arguments, code, sentence):
    sets = [part for text in arguments for part in ("--set", text)]
    found, _, err = sft("tune", "tiny.toml", *sets, "--trials", 2, "--output", "study", "--quiet")
    assert found == code
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not list(Path("study").glob("study.json"))
    assert not list(Path("study").glob("trials/*"))


def test_a_metric_of_unknown_direction_needs_one(sft):
    arguments = ("tune", "tiny.toml", "--set", LR, "--trials", 1, "--output", "s", "--quiet")
    code, _, err = sft(*arguments, "--metric", "zeal")
    assert code == 2
    assert "nobody knows whether more or less of the metric 'zeal' is better" in err
    code, _, err = sft(*arguments, "--metric", "zeal", "--set", "checkpoint.direction=max")
    assert code == 2
    assert "has no metric 'zeal'; allowed: `accuracy`" in err
    assert sft(*arguments, "--metric", "nll")[0] == 0  # the folder is free for another try


def test_a_metric_that_there_is_not_is_said_at_the_first_evaluation(sft):
    last = ("--set", "checkpoint.best=last")
    arguments = ("tune", "tiny.toml", "--set", LR, "--trials", 1, "--output", "s", "--quiet")
    code, _, err = sft(*arguments, *last, "--metric", "recal/loss")
    assert code == 2
    assert err.startswith("error: the validation split has no metric 'recal/loss'; ")
    assert not list(Path("s").glob("trials/*"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("optimizer.lr=log(1e-5, 1e-1)",), "other space"),
        ((*SPACE, "train.epochs=1"), "other overrides"),
    ],
)
def test_another_study_needs_another_folder(sft, changed, sentence):
    tune("study", 1)
    sets = [part for text in changed for part in ("--set", text)]
    code, _, err = sft("tune", "tiny.toml", *sets, "--trials", 2, "--output", "study")
    assert code == 1
    assert sentence in err


def test_a_folder_with_something_else_is_refused(sft):
    Path("runs").mkdir()
    Path("runs/notes.txt").write_text("mine")
    code, _, err = sft(*command("runs", 1))
    assert (code, [p.name for p in Path("runs").iterdir()]) == (1, ["notes.txt"])
    assert "holds 'notes.txt' and no study" in err


def test_without_optuna_it_says_what_to_install(sft, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = sft(*command("study", 1))
    assert (code, Path("study").exists()) == (2, False)
    assert "`pip install 'sft-engine[tune]'`" in err
