"""Trackers: TensorBoard's events are read back; what others would get is checked at their door."""

from __future__ import annotations

import json
import math
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_engine.builtin import trackers
from sft_engine.catalog import Catalog, Entry, Plan, Planned
from sft_engine.errors import RecipeError
from sft_engine.flow import Clock
from sft_engine.options import check_options, signature_of
from sft_engine.settings import (
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    SeedSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    import time
    from pathlib import Path

    from sft_engine.flow import Run

TRAIN = {
    "kind": "train",
    "step": 10,
    "epoch": 0.5,
    "loss": 0.75,
    "loss/task": 0.5,
    "lr": 5e-5,
    "grad_norm": math.inf,
    "examples_per_second": 97,
}
EVALUATION = {
    "kind": "evaluation",
    "split": "validation",
    "view": "",
    "step": 10,
    "accuracy": 0.875,
    "f1/very good": math.nan,
    "confusion_matrix": [[1, 2], [3, 4]],
}


def a_plan() -> Plan:
    def planned(key: str, kind: str, name: str, **options: Any) -> Planned:
        return Planned(key, Entry(kind, name, "package:Class", "A summary."), options)

    return Plan(
        recipe=cast("Any", None),
        seeds=SeedSettings(seed=3),
        train=TrainSettings(),
        data=DataSettings(label_names=("bad", "good")),
        evaluation=EvaluationSettings(),
        checkpoint=CheckpointSettings(),
        components=(
            planned("optimizer", "optimizer", "adamw", lr=5e-5, betas=(0.9, 0.999)),
            planned("regularizer[1]", "regularizer", "l2-sp", alpha=0.01, only=None),
        ),
        catalog=Catalog(),
    )


def a_run(folder: Path, **changes: Any) -> Run:
    """Return what a tracker asks a run for."""
    Accelerator(cpu=True)  # as in a real run: Accelerate's trackers ask it for the rank
    parts: dict[str, Any] = {
        "folder": folder,
        "plan": a_plan(),
        "clock": Clock(total_steps=100, steps_per_epoch=20),
        "is_main": True,
    }
    return cast("Run", SimpleNamespace(**parts | changes))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read back what TensorBoard would show: (step, value) by tag."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


def track(tracker: Any, run: Run, *records: dict[str, Any]) -> None:
    tracker.sft_setup(run)
    for record in records:
        tracker.sft_log(run, record)
    tracker.sft_teardown(None)


def test_tensorboard_shows_every_number_at_its_step(tmp_path: Path) -> None:
    later = {**TRAIN, "step": 20, "loss": math.nan}
    track(trackers.TensorBoard(), a_run(tmp_path), TRAIN, EVALUATION, later)
    found = events(tmp_path)
    assert sorted(found) == [
        "train/epoch",
        "train/examples_per_second",
        "train/grad_norm",
        "train/loss",
        "train/loss/task",
        "train/lr",
        "validation/accuracy",
        "validation/f1/very good",
    ]
    assert found["validation/accuracy"] == [(10, 0.875)]
    assert found["train/loss"][0] == (10, 0.75)
    assert [math.isnan(value) for _, value in found["train/loss"]] == [False, True]
    assert found["train/grad_norm"][0] == (10, math.inf)
    assert found["train/lr"][0][1] == pytest.approx(5e-5)


def test_tensorboard_gets_the_recipe_as_hyper_parameters(tmp_path: Path) -> None:
    track(trackers.TensorBoard(), a_run(tmp_path))
    [written] = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert "optimizer.lr: 5.0e-05\n" in written.read_text(encoding="utf-8")


def test_a_resumed_run_hides_what_it_writes_again(tmp_path: Path) -> None:
    records = [{**TRAIN, "step": step, "loss": float(step)} for step in (10, 20, 30)]
    track(trackers.TensorBoard(), a_run(tmp_path), *records)
    time.sleep(1.1)  # TensorBoard reads its files by name, in which the time stands in seconds
    resumed = a_run(tmp_path, clock=Clock(total_steps=100, steps_per_epoch=20, step=20))
    track(trackers.TensorBoard(), resumed, {**TRAIN, "step": 30, "loss": 0.5})
    assert events(tmp_path)["train/loss"] == [(10, 10.0), (20, 20.0), (30, 0.5)]


def test_only_rank_0_writes(tmp_path: Path) -> None:
    track(trackers.TensorBoard(), a_run(tmp_path, is_main=False), TRAIN)
    assert list(tmp_path.iterdir()) == []


def test_records_before_the_setup_and_after_the_end_are_no_error(tmp_path: Path) -> None:
    tracker, run = trackers.TensorBoard(), a_run(tmp_path)
    tracker.sft_log(run, TRAIN)
    tracker.sft_teardown(None)
    assert list(tmp_path.iterdir()) == []
    track(tracker, run, {"kind": "notice", "message": "out of memory"})
    tracker.sft_teardown(RuntimeError())
    assert events(tmp_path) == {}


def test_names_of_what_is_sent() -> None:
    assert trackers.scalars({"kind": "verdict", "step": 3, "action": "skip"}) == {}
    view = {**EVALUATION, "split": "test", "view": "typos", "flag": True}
    assert set(trackers.scalars(view)) == {"test/typos/accuracy", "test/typos/f1/very good"}
    assert trackers.scalars({"kind": "notice", "seconds": 2}) == {"notice/seconds": 2}


def test_hyper_parameters_are_every_option_of_the_plan() -> None:
    found = trackers.hyper_parameters(a_plan())
    expected = {
        "seeds.seed": 3,
        "train.batch_size": 32,
        "data.label_names": '["bad", "good"]',
        "optimizer.use": "adamw",
        "optimizer.lr": 5e-5,
        "optimizer.betas": "[0.9, 0.999]",
        "regularizer.1.alpha": 0.01,
        "regularizer.1.only": "null",
    }
    assert {name: found[name] for name in expected} == expected
    assert all(isinstance(value, (str, int, float)) for value in found.values())


@pytest.mark.parametrize("name", ["TensorBoard", "WandB", "MlFlow"])
@pytest.mark.parametrize("is_main", [True, False])
def test_a_missing_package_stops_every_rank_with_what_to_install(
    name: str, is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = getattr(trackers, name)()
    monkeypatch.setitem(sys.modules, tracker.package, None)
    for attempt in (tracker.check, lambda: tracker.sft_setup(a_run(tmp_path, is_main=is_main))):
        with pytest.raises(RecipeError) as caught:
            attempt()
        assert str(caught.value) == (
            f"`tracker`: {name} needs the package {tracker.package}, which is not installed: "
            f"pip install 'sft-engine[{tracker.package}]'"
        )
    assert list(tmp_path.iterdir()) == []


def test_mlflow_gets_names_that_every_store_of_it_takes() -> None:
    assert trackers.mlflow_name("train/loss") == "train/loss"
    assert trackers.mlflow_name("train/loss/task") == "train/loss.task"
    assert trackers.mlflow_name("test/f1/very good!") == "test/f1.very good_"


def test_a_tracker_that_fails_warns_and_does_not_end_the_run(tmp_path: Path) -> None:
    tracker, run = trackers.TensorBoard(), a_run(tmp_path)
    tracker.sft_setup(run)
    assert tracker.tracker is not None
    tracker.tracker.tracker.close()
    tracker.tracker.log = _no_answer  # type: ignore[method-assign]
    with pytest.warns(
        RuntimeWarning, match=r"tensorboard did not take the record of step 10.*gone"
    ):
        tracker.sft_log(run, TRAIN)
    tracker.sft_teardown(None)


def _no_answer(values: dict[str, float], step: int) -> None:
    raise ConnectionError("gone")


@pytest.mark.parametrize("name", ["TensorBoard", "WandB", "MlFlow"])
def test_every_option_is_explained_and_has_a_default(name: str) -> None:
    signature = signature_of(f"sft_engine.builtin.trackers:{name}")
    assert [o.name for o in signature.options if not o.help or o.required] == []
    options, problems = check_options(signature, {}, key="tracker[0]", owner=name)
    assert problems == []
    assert json.dumps(options)
    getattr(trackers, name)(**options)
