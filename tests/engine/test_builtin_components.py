"""The built-in optimizers, schedules, early stopping, trackers and the console in real runs."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_engine import Interrupted, RecipeError
from sft_engine.builtin import schedules
from sft_engine.console import Console
from sft_engine.testing.runs import TINY, run_recipe

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 6  # of the tiny recipe: two epochs of three


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


SCHEDULES = {
    "constant": schedules.Constant(),
    "linear": schedules.Linear(),
    "cosine": schedules.Cosine(),
    "polynomial": schedules.Polynomial(),
    "one-cycle": schedules.OneCycle(),
    "wsd": schedules.WarmupStableDecay(),
    "inverse-sqrt": schedules.InverseSqrt(),
    "step": schedules.Step(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loop_trains_at_the_rate_of_the_schedule(name: str, tmp_path: Path) -> None:
    run_recipe(tmp_path / "run", overrides=[f"schedule.use={name}", "optimizer.lr=0.25"])
    rates = [record["lr"] for record in records(tmp_path / "run", "train")]
    assert rates == [0.25 * SCHEDULES[name].factor(step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.use=lamb", "schedule.use=one-cycle"],
        ["optimizer.use=adafactor", "optimizer.lr=0.05"],
        ["optimizer.use=sgd", "schedule.use=plateau", "schedule.patience=0", "schedule.metric=nll"],
        ["optimizer.use=torch", "optimizer.name=RAdam", "optimizer.options.eps=0.001"],
        ["optimizer.use=timm", "optimizer.name=adafactorbv"],
        ["optimizer.use=timm", "optimizer.name=adan", "schedule.use=one-cycle"],
    ],
    ids=" ".join,
)
def test_a_resumed_run_ends_bit_equal(overrides: list[str], tmp_path: Path) -> None:
    overrides = [*overrides, "evaluation.every_steps=1"]
    whole = run_recipe(tmp_path / "whole", overrides=overrides)
    with pytest.raises(Interrupted):
        run_recipe(tmp_path / "parted", overrides=overrides, stop_after=4)
    resumed = run_recipe(tmp_path / "parted", overrides=overrides, resume=True)
    assert resumed.fingerprint == whole.fingerprint
    losses = [[r["loss"] for r in records(tmp_path / d, "train")] for d in ("whole", "parted")]
    assert losses[0] == losses[1]


def test_early_stopping_ends_a_run(tmp_path: Path) -> None:
    text = TINY + '[[extension]]\nuse = "early-stopping"\npatience = 2\nmin_delta = 2.0\n'
    outcome = run_recipe(tmp_path / "run", text, overrides=["evaluation.every_steps=1"])
    assert outcome.reason.startswith("early-stopping: validation accuracy has not improved on 0.")
    assert outcome.reason.endswith("(step 1) for 2 evaluations")
    assert records(tmp_path / "run", "train")[-1]["step"] == 3


def test_plateau_lowers_the_rate_of_the_next_step(tmp_path: Path) -> None:
    run_recipe(
        tmp_path / "run",
        overrides=[
            "schedule.use=plateau",
            "schedule.patience=0",
            "schedule.gamma=0.5",
            "schedule.threshold=5.0",
            "optimizer.lr=0.25",
            "evaluation.every_steps=2",
        ],
    )
    rates = [record["lr"] for record in records(tmp_path / "run", "train")]
    assert rates == [0.25, 0.25, 0.25, 0.25, 0.125, 0.125]


def test_tensorboard_has_what_metrics_jsonl_has(tmp_path: Path) -> None:
    text = TINY + '[[tracker]]\nuse = "tensorboard"\n'
    run_recipe(tmp_path / "run", text)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for kind, tag, key in [
        ("train", "train/loss", "loss"),
        ("train", "train/lr", "lr"),
        ("evaluation", "validation/accuracy", "accuracy"),
    ]:
        written = [
            (record["step"], pytest.approx(record[key]))
            for record in records(tmp_path / "run", kind)
            if record.get("split", "validation") == "validation"
        ]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == written


def test_the_console_shows_a_whole_run(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Console(stream=stream, errors=stream) as console:
        console.finish(run_recipe(tmp_path / "run", progress=console))
    lines = stream.getvalue().splitlines()
    assert " on 1 process, cpu, fp32, 1 thread" in lines[0]
    starts = [line.split(" left=")[0].split(" loss=")[0].split(" accuracy=")[0] for line in lines]
    for step in range(1, STEPS + 1):
        assert any(start.startswith(f"train step={step}/{STEPS} ") for start in starts)
    assert f"evaluation split=validation step={STEPS}" in starts
    assert lines[-1].split() == ["checkpoints", str(tmp_path / "run" / "checkpoints")]
    assert any(line.startswith("true \\ predicted") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer.use=torch", "optimizer.name=RAdm"], "did you mean `RAdam`"),
        (["optimizer.use=timm", "optimizer.name=lyon"], "did you mean `lion`"),
        (["optimizer.use=rmsprop", "optimizer.implementation=fused"], "allowed: auto, foreach"),
        (["optimizer.use=sgd", "optimizer.nesterov=true", "optimizer.momentum=0.0"], "momentum"),
        (["schedule.use=plateau", "evaluation.every_epochs=0"], "needs evaluations during"),
        (["schedule.use=plateau", "schedule.metric=acuracy"], "did you mean `accuracy`"),
    ],
)
def test_a_mistake_is_a_sentence(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        run_recipe(tmp_path / "run", overrides=overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()
