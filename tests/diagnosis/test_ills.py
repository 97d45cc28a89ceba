"""Runs that were made ill on purpose are found ill, with remedies; healthy ones are left alone."""

from __future__ import annotations

import json

import ills
import pytest

HEALTHY = [(name, seed) for name in ills.HEALTHY for seed in ills.SEEDS]


@pytest.mark.parametrize("name", ills.ILLS)
def test_an_illness_is_found(tmp_path, name):
    ill = ills.ILLS[name]
    found = {each.name: each for each in ills.cured(tmp_path / "run", ill)}
    assert ill.finding in found, sorted(found)
    finding = found[ill.finding]
    assert finding.level in ("warning", "serious")
    assert any(digit in finding.evidence for digit in "0123456789")
    assert finding.remedies


def test_there_are_twenty_healthy_runs_and_as_many_illnesses():
    assert len(HEALTHY) >= 20
    assert len({ill.finding for ill in ills.ILLS.values()}) >= 12


@pytest.mark.parametrize(("name", "seed"), HEALTHY)
def test_a_healthy_run_gives_no_alarm(tmp_path, name, seed):
    recipe, _ = ills.HEALTHY[name]
    found = ills.diagnosed(tmp_path / "run", recipe, ills.seeded(name, seed))
    assert [each.line() for each in found if each.level != "info"] == []
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [r for r in map(json.loads, lines) if r["kind"] == "finding"] == []
