"""Recipes of runs with a frozen part, and what the runs have recorded."""

from __future__ import annotations

import json

import pytest

from sft_engine.testing.runs import TINY

FROZEN = TINY + '[freezing]\nuse = "frozen"\n'
PICTURES = (
    FROZEN.replace("text-classification", "image-classification")
    .replace('use = "tiny/text"\n', 'use = "tiny/image"\n')
    .replace("tiny/texts", "tiny/pictures")
)
ON, OFF = "train.replay=true", "train.replay=false"
NOISY = ["optimizer.lr=0.03", "train.epochs=4", "train.micro_batch_size=6"]
DROPOUT = [*NOISY, "backbone.dropout=0.3"]


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def notices(folder):
    return [r["message"] for r in records(folder, "notice")]


def curve(folder):
    return [r["loss"] for r in records(folder, "train")]


def same_curves(one, other):
    """Equal but for the rounding of batches that were put together otherwise."""
    assert numbers(one) == pytest.approx(numbers(other), rel=1e-4)
    return curve(one) == pytest.approx(curve(other), rel=1e-5)


def numbers(folder):
    """All metrics of all evaluations in one list."""
    return [v for r in evaluations(folder) for v in r.values() if isinstance(v, float)]


def evaluations(folder):
    skipped = ("seconds", "examples_per")
    return [
        {k: v for k, v in r.items() if not k.startswith(skipped)}
        for r in records(folder, "evaluation")
    ]
