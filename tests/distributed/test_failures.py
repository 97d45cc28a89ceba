"""What fails on one rank ends all of them, soon, with the same sentence and exit code."""

from __future__ import annotations

import json

import pytest

SHORT = ["train.steps=6", "checkpoint.every_steps=2"]


def status(group):
    run = json.loads((group.folder / "run" / "run.json").read_text())
    return run["status"], run["exit_code"], run["message"]


DISK = {
    "checkpoint": "cannot write the checkpoint of step 2",
    "records": "cannot write metrics.jsonl",
    "folder": "cannot write recipe.toml",
    "results": "cannot write report.json",
}


@pytest.mark.parametrize("where", DISK)
def test_a_full_disk_of_rank_0_ends_all(ranks, where):
    group = ranks("failing", where=where, at=0, overrides=SHORT, codes=[1, 1])
    assert group["error"] == ["OutputError"] * 2
    assert group["message"][0] == group["message"][1]
    assert group["message"][0].startswith(DISK[where])
    if where in ("checkpoint", "records"):
        assert status(group) == ("failed", 1, group["message"][0])


def test_data_that_breaks_on_one_rank_ends_all(ranks):
    overrides = [*SHORT, "data.use=test/texts"]
    group = ranks("failing", where="data", at=1, overrides=overrides, codes=[1, 1])
    assert "ValueError: stumbled" in group.errors(1)
    assert "rank 1 failed with ValueError: stumbled" in group.results[0]["message"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("kind", "code"), [("DataError", 3), ("ValueError", 1)])
def test_an_exception_of_a_component_on_one_rank_ends_all(ranks, rank, kind, code):
    fails = f'"test/fails"\nrank = {rank}\nkind = "{kind}"'
    group = ranks("interrupted", at=-1, overrides=SHORT, extensions=[fails], codes=[code, code])
    other = 1 - rank
    assert "boom on one rank" in group.errors(rank)
    assert 'extension[0] "test/fails"' in group.errors(rank) or kind == "DataError"
    assert "boom on one rank" in group.results[other]["message"]
    assert group.results[other]["error"] == {"DataError": kind}.get(kind, "SftError")
    state, shown, message = status(group)
    assert (state, shown) == ("failed", code)
    assert "boom on one rank" in message


def test_a_process_that_is_killed_ends_the_others(ranks):
    kill = '"test/kill"\nsignal = "SIGKILL"\nrank = 1'
    group = ranks("interrupted", at=-1, overrides=SHORT, extensions=[kill], codes=[1, -9])
    assert "another process of this run ended without a word" in group.results[0]["message"]
    assert status(group)[0] == "failed"
    assert len(group.results) == 2
    assert group.results[1] is None
