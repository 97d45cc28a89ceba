"""Studies with a probe, one of them with a run that was stopped and one that diverged, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sft_engine
from sft_engine import verbs
from sft_engine.study import StudySettings

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).with_name("tiny.toml").read_text()
PROBE = '[[probe]]\nuse = "typos"\nseverities = [0.3, 0.9]\nexamples = 9\n'


DESIGN = {"data": 1, "seeds": 5, "vary": ("noise",), "drop": 0.3, "executor": "inline"}
LEARNS = ["train.epochs=6", "data.examples=96", "data.validation=40", "backbone.dropout=0.1"]
BAD = {"diverged": "data-00-seed-02 nan", "hopeless": "data-00-seed-04 wrong"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory, _installed):
    """A study, one that learns too slowly, and the first again with one run that fails."""
    folder = tmp_path_factory.mktemp("studies")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE + PROBE)
    slow = ["optimizer.lr=1e-7"]
    for name in ("plain", "slow", *BAD):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STUDY_BAD", BAD.get(name, "none none"))
            overrides = LEARNS + (slow if name == "slow" else [])
            verbs.stability(
                recipe,
                output=folder / name,
                overrides=overrides,
                settings=StudySettings(**DESIGN),
            )
    return folder


def test_two_studies(studies):
    found = sft_engine.compare([studies / "plain", studies / "slow"], resamples=200)
    (pair,) = found.pairs
    for group in found.groups:
        study = json.loads((studies / group.name / "study.json").read_text())
        assert group.left_out == ()
        assert group.values == tuple(cell["score"] for cell in study["cells"])
    assert (pair.evidence.over_runs.test, pair.evidence.over_runs.pairs) == (
        "paired permutation",
        5,
    )
    assert found.notes == ()


def test_a_curve_starts_at_the_clean_value_on_the_examples_of_the_probe(studies):
    found = sft_engine.compare([studies / "plain", studies / "slow"], resamples=200)
    assert {view.evidence.view for view in found.views} == {"typos@0.3", "typos@0.9"}
    (section,) = [each for each in found.sections if each["id"] == "comparison-probes"]
    curve = next(block for block in section["blocks"] if block["kind"] == "lines")
    assert curve["x"]["values"] == [0, 0.3, 0.9]
    for series in curve["series"]:
        reports = (studies / series["name"]).glob("runs/*/report.json")
        facts = [json.loads(path.read_text())["probes"]["typos"] for path in reports]
        means = [
            sum(column) / 5 for column in zip(*(each["values"] for each in facts), strict=True)
        ]
        assert series["values"] == pytest.approx(means)


@pytest.mark.parametrize(
    ("name", "why"), [("diverged", "failed"), ("hopeless", "stopped as hopeless")]
)
def test_what_did_not_come_to_its_end_is_left_out(studies, name, why):
    found = sft_engine.compare([studies / "plain", studies / name], resamples=200)
    whole, holed = found.groups
    (gone,) = holed.left_out
    assert (gone.run, gone.why) == (BAD[name].split()[0], why)
    assert gone.reason
    place = int(gone.run[-1])
    assert holed.values == whole.values[:place] + whole.values[place + 1 :]
    assert f"1 of 5 runs of {name} ({why})" in found.verdict
