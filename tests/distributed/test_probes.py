"""Every probe on two processes: the figures, sections and predictions of one."""

from __future__ import annotations

import json
import math

import pytest

from sft_probes import PROBES

pytestmark = pytest.mark.slow

KINDS = {
    "image": (
        ["task.use=image-classification", "data.use=tiny/pictures", "backbone.use=tiny/image"],
        "corruptions rotation translation occlusion resolution jpeg fgsm pgd autoattack".split(),
    ),
    "number": (
        ["task.use=tabular-classification", "data.use=test/numbers", "backbone.use=mlp"],
        ["feature-noise", "missing", "shift"],
    ),
    "sound": (
        ["task.use=audio-classification", "data.use=test/sounds", "backbone.use=test/hearing"],
        ["background-noise", "speed", "gain"],
    ),
}
OPTIONS = {
    "corruptions": ["severities=[1, 5]", 'corruptions=["fog", "gaussian_noise"]'],
    "autoattack": ["severities=[8]", "iterations=2", "queries=3"],
    "fgsm": ["severities=[2, 32]"],
    "pgd": ["severities=[2, 32]"],
    "groups": ["column=label"],
    "word-substitution": ["severities=[0.3, 1.0]"],
}
APART = ("checklist",)
"""It asks on every rank for all of its own texts; it needs a file."""
ELSEWHERE = {name for _, names in KINDS.values() for name in names}
KINDS["text"] = (
    ["data.use=test/words", "backbone.dtype=float64"],
    [name for name in PROBES if name not in {*ELSEWHERE, *APART}],
)


def overrides_of(kind):
    settings, names = KINDS[kind]
    settings = [*settings, "data.test=13", "evaluation.batch_size=4", "train.steps=4"]
    for place, name in enumerate(names):
        options = [f"use={name}", *OPTIONS.get(name, ())]
        settings += [f"probe[{place}].{option}" for option in options]
    return [each.replace("{", "{{").replace("}", "}}") for each in settings]


CASES = {kind: {"overrides": overrides_of(kind)} for kind in KINDS}
CASES["image"]["extensions"] = ['"test/grouped"']  # batch norm's statistics are those of rank 0


def assert_alike(mine, other, where):
    """Compare JSON values; numbers within what the order of a sum makes of 32 bits."""
    if isinstance(other, dict):
        assert mine.keys() == other.keys(), where
        for key, value in other.items():
            assert_alike(mine[key], value, f"{where}.{key}")
    elif isinstance(other, list):
        assert len(mine) == len(other), where
        for place, (one, two) in enumerate(zip(mine, other, strict=True)):
            assert_alike(one, two, f"{where}[{place}]")
    elif isinstance(other, float) and isinstance(mine, float):
        assert math.isclose(mine, other, rel_tol=1e-3, abs_tol=1e-4), f"{where}: {mine}, {other}"
    else:
        assert mine == other, where


@pytest.mark.parametrize("kind", KINDS)
def test_probes_report_what_they_do_in_one_process(one, two, kind):
    ours, theirs = (
        json.loads((group.folder / kind / "report.json").read_text()) for group in (two, one)
    )
    assert list(ours["probes"]) == KINDS[kind][1]
    assert_alike(ours["probes"], theirs["probes"], "probes")
    mine, others = (
        {each["id"]: each for each in report["sections"] if each["id"] in report["probes"]}
        for report in (ours, theirs)
    )
    assert_alike(mine, others, "sections")


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_every_view_are_those_of_one_process(one, two, kind):
    def predictions(group):
        folder = group.folder / kind / "predictions"
        return {
            path.relative_to(folder).as_posix(): list(
                map(json.loads, path.read_text().splitlines())
            )
            for path in sorted(folder.rglob("*.jsonl"))
        }

    ours, theirs = predictions(two), predictions(one)
    assert len(ours) > len(KINDS[kind][1])
    assert_alike(ours, theirs, "predictions")
