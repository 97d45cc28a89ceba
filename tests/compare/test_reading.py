"""What can be compared, and what is refused with which sentence."""

from __future__ import annotations

import json

import pytest
from compared_folders import right, write

from sft_engine import compare
from sft_engine.comparing.runs import LeftOut, read_groups
from sft_engine.errors import CheckpointError, DataError, RecipeError


def names(given):
    return {group.name: [m.folder.name for m in group.members] for group in read_groups(given)}


@pytest.fixture
def three(folders):
    return [folders.run(name, right(0.5), seed=i) for i, name in enumerate("abc")]


def test_runs_groups_and_names(three, folders):
    a, b, c = three
    assert names([a, str(b)]) == {"a": ["a"], "b": ["b"]}
    assert names([f"plain={a},{b}", c]) == {"plain": ["a", "b"], "c": ["c"]}
    assert names([f"x={a}", f"y={b}"]) == {"x": ["a"], "y": ["b"]}
    assert names({"p": [a, b], "q": [c]}) == {"p": ["a", "b"], "q": ["c"]}
    odd = folders.run("odd=1,2", right(0.5))
    assert names([str(odd), a]) == {"odd=1,2": ["odd=1,2"], "a": ["a"]}
    assert names([f"z={odd}", a]) == {"z": ["odd=1,2"], "a": ["a"]}


def test_folders_of_one_name_are_told_apart_by_their_path(folders):
    one, two = folders.run("x/run", right(0.5)), folders.run("y/run", right(0.5))
    assert list(names([one, two])) == [str(one), str(two)]


def test_a_study_is_a_group_and_its_unfinished_runs_are_named(folders):
    study = folders.study("s", [[right(0.5), right(0.6)], [right(0.7), None]])
    plain = folders.run("plain", right(0.5))
    (group, other) = read_groups([f"ours={study}", plain])
    assert (group.name, group.study) == ("ours", True)
    assert group.left_out == (LeftOut("data-1-seed-1", "not finished", ""),)
    assert {(m.data, m.seeds[0]) for m in group.members} == {
        ("data 0", 0), ("data 0", 1), ("data 1", 0),
    }  # fmt: skip
    found = compare([study, plain])
    assert "s: 1 of 4 runs left out" in " ".join(found.notes)
    assert not other.study


def test_hopeless_and_failed_runs_of_a_study_count_in_no_figure(folders):
    """As a study does: they are left out of the scores, and said, whether they left a report or not."""
    flags = [[right(0.9), right(0.8)], [right(0.1), None]]
    study, same = folders.study("s", flags), folders.study("t", [flags[0], [None, None]])
    report = study / "runs/data-1-seed-0/report.json"
    reason = "hopeless: accuracy 0.1 at step 3, median of 3 other runs 0.9"
    write(report, {**json.loads(report.read_text()), "reason": reason})
    end = {"error": "DivergedError", "message": "the loss is nan at step 0: lower `optimizer.lr`"}
    write(study / "runs/data-1-seed-1/run.json", end)
    never = {"name": "data-2-seed-0", "data": 2, "seed": 0}
    write(study / "study.json", {"cells": [never]})
    found = compare([study, same], resamples=200)
    assert found.groups[0].values == found.groups[1].values == (0.9, 0.8)
    assert [(each.run, each.why, each.reason) for each in found.groups[0].left_out] == [
        ("data-1-seed-0", "stopped as hopeless", reason.removeprefix("hopeless: ")),
        ("data-1-seed-1", "failed", "the loss is nan at step 0"),
        ("data-2-seed-0", "not finished", ""),
    ]
    assert "3 of 5 runs of s (1 stopped as hopeless, 1 failed, 1 not finished)" in found.verdict
    assert "2 of 4 runs of t (not finished)" in found.verdict
    assert "data-1-seed-0 stopped as hopeless (accuracy 0.1 at step 3" in found.notes[0]
    table = found.sections[0]["blocks"][0]
    assert table["columns"][:3] == ["group", "runs", "left out"]
    assert [row[1:3] for row in table["rows"]] == [[2, 3], [2, 2]]
    assert found.as_json()["groups"][0]["left_out"][0]["why"] == "stopped as hopeless"
    # Named one by one it is compared, with a note.
    alone = compare([study / "runs/data-1-seed-0", study / "runs/data-0-seed-0"], resamples=200)
    assert "was stopped as hopeless (accuracy 0.1" in " ".join(alone.notes)


def test_a_study_of_which_no_run_came_to_its_end_is_refused(folders):
    study = folders.study("s", [[right(0.5), None]])
    report = study / "runs/data-0-seed-0/report.json"
    write(report, {**json.loads(report.read_text()), "reason": "hopeless: far behind"})
    said = r"s is a study without a run that trained to its end \(1 stopped as hopeless, 1 not finished\)"
    with pytest.raises(CheckpointError, match=said):
        compare([study, folders.run("plain", right(0.5))])


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["a"], RecipeError, r"^1 to compare: name at least two run folders"),
        (["a", "a"], RecipeError, "'a' is to be compared twice: give each a name"),
        (["a", "x=a,"], RecipeError, r"'x=a,': a group of runs is written `NAME=RUN,RUN`"),
        (["a", "x=b,b"], RecipeError, "x: the same run is named twice"),
        (["a", "nowhere"], CheckpointError, r"^nowhere is neither a run folder"),
        (["a", "begun"], CheckpointError, "begun has no report.json, .* `sft-engine resume begun`"),
        (["a", "broken"], CheckpointError, r"report\.json cannot be read \(JSONDecodeError\)"),
        (["a", "unjudged"], CheckpointError, "unjudged was evaluated on no split"),
        (["a", "empty-study"], CheckpointError, "empty-study is a study without a run that"),
        (["a", "search"], CheckpointError, "search is a search of `sft-engine tune`"),
        (["a", "x=b,empty-study"], RecipeError, "empty-study is a study, a group of its own"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(
    given, error, said, three, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("begun", "broken", "unjudged"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "run.json", {})
    (tmp_path / "broken/report.json").write_text("{")
    write(tmp_path / "unjudged/report.json", {"split": "", "metrics": {}})
    for name, inside in (("empty-study", "runs/x"), ("search", "trials")):
        (tmp_path / name / inside).mkdir(parents=True)
        write(tmp_path / name / "study.json", {})
    with pytest.raises(error, match=said) as caught:
        compare(given)
    assert "\n" not in str(caught.value)


def change(path, edit):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda lines: lines.pop(3), "200 rows in one, 199 in the other, 1 in only one"),
        (lambda lines: lines[5].update(label="yes" if lines[5]["label"] == "no" else "no"),
         r"the true labels of 1 rows differ \(row 5 is the first\)"),
        (lambda lines: [line.update(row=line["row"] + 1) for line in lines], "2 in only one"),
        (lambda lines: [line.update(label=1.5, prediction=1) for line in lines],
         "one is classification, the other regression"),
    ],
)  # fmt: skip
def test_other_examples_are_refused(edit, said, three):
    change(three[1] / "predictions/test.jsonl", edit)
    with pytest.raises(DataError, match=f"did not predict the same examples: .*{said}") as caught:
        compare(three)
    assert caught.value.exit_code == 3


def test_other_texts_under_the_same_labels_are_refused(three):
    facts = json.loads((three[2] / "run.json").read_text())
    facts["data"]["test"] = "other"
    write(three[2] / "run.json", facts)
    with pytest.raises(DataError, match=r"the fingerprints in run\.json differ"):
        compare(three)


def test_without_predictions_and_fingerprints_nothing_can_tell(folders):
    one, two = (folders.run(name, None, metrics={"accuracy": 0.5}) for name in "ab")
    for folder in (one, two):
        write(folder / "run.json", {})
    with pytest.raises(DataError, match="neither predictions nor fingerprints to tell by"):
        compare([one, two])


def test_other_splits_are_refused(folders):
    one = folders.run("a", right(0.5))
    two = folders.run("b", right(0.5), split="validation")
    with pytest.raises(DataError, match=r"judged on different splits \(test, validation\)"):
        compare([one, two])


def test_the_order_of_lines_does_not_matter(three):
    change(three[1] / "predictions/test.jsonl", lambda lines: lines.reverse())
    assert compare(three[:2]).pairs[0].verdict.code == "same"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"metric": "auroc"},
            "not every run has the metric 'auroc': all of them have accuracy, odd",
        ),
        ({"metric": "odd"}, "nobody knows whether more or less of the metric 'odd' is better"),
        ({"view": "typos@1"}, "not every run has the view 'typos@1': those of all are clean"),
        ({"margin": 0.0}, "margin 0: must be above 0"),
        ({"margin": -1}, "margin -1: must be above 0"),
        ({"level": 1.0}, "level 1: must be above 0.5"),
        ({"resamples": 5}, "5 resamples: must be 100 at least"),
    ],
)
def test_options_out_of_range_are_refused(options, said, folders):
    runs = [folders.run(name, right(0.5), metrics={"odd": 1.0}) for name in "ab"]
    with pytest.raises(RecipeError, match=said):
        compare(runs, **options)


def test_a_comparison_says_what_all_runs_have_in_common(folders):
    found = compare(
        [folders.run("one", right(0.5)), folders.run("two", right(0.6), seed=1, data="x")]
    )
    assert found.facts == {"data": {"test": "hash"}}
    assert found.as_json()["facts"] == found.facts
