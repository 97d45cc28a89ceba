"""What the command line does, as functions for notebooks: typed, without global state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine import launch
from sft_engine.catalog import Plan
from sft_engine.catalog import plan as make_plan
from sft_engine.errors import CheckpointError, DataError, Interrupted, OutputError, SftError
from sft_engine.interruption import Signals
from sft_engine.recipe import Recipe, load_recipe
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from sft_engine.assemble import Reopened
    from sft_engine.training import Outcome, Progress

RecipeLike = str | Path | Recipe


def check(recipe: RecipeLike, *, overrides: Sequence[str] = ()) -> Plan:
    """Check a recipe without building or writing anything; imports no torch.

    Raises:
        RecipeError: with every problem that was found, a line each.
    """
    return make_plan(_recipe(recipe, overrides))


def run(
    recipe: RecipeLike,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Train by a recipe and write a run folder.

    Args:
        recipe: A file, or a recipe that was loaded.
        output: The run folder, which must be new or empty; None picks `runs/NAME`, `runs/NAME-2`, …
        overrides: `KEY=VALUE` texts as for `--set`.
        progress: Shows the run; None shows nothing.

    Raises:
        SftError: one sentence on what stopped the run; its `exit_code` is that of the command line.
    """
    with Signals() as signals:
        planned = check(recipe, overrides=overrides)
        folder = choose_folder(planned, output)
        from sft_engine.training import train

        return train(planned, folder, progress=progress, signals=signals)


def resume(folder: str | Path, *, progress: Progress | None = None) -> Outcome:
    """Go on with an interrupted run from its newest complete checkpoint.

    Raises:
        CheckpointError: the folder holds no run or no complete checkpoint, or the run has ended.
    """
    folder = Path(folder)
    with Signals() as signals:
        planned = check(_recipe_of(folder))
        if (folder / "report.json").exists() and (folder / "model").exists():
            raise CheckpointError(
                f"{folder} has ended already: use `sft-engine evaluate` or `predict`, or start the "
                "recipe again with more `train.epochs`"
            )
        from sft_engine.training import train

        return train(planned, folder, resume=True, progress=progress, signals=signals)


def evaluate(
    folder: str | Path,
    *,
    split: str = "test",
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate the final weights of a run.

    Args:
        folder: The run folder.
        split: Split of the recipe's data.
        data: A csv, jsonl or parquet file with the recipe's columns to evaluate instead.
        overrides: Changes of the recipe, such as `evaluation.batch_size=8` or `data.columns.text=…`.

    Returns:
        Metrics by name; the views of components as `VIEW/METRIC`.
    """
    from sft_engine.devices import enough_memory, own_state
    from sft_engine.evaluation import evaluate as evaluate_split

    with own_state(0), enough_memory("take a machine with more memory"):
        reopened = _reopen(Path(folder), overrides, data, split)
        run = reopened.run
        if split not in run.splits:
            raise DataError(
                f"{folder}: there is no split {split!r}, the recipe's data has {', '.join(run.splits)}"
            )
        settings = run.plan.evaluation
        micro = run.plan.train.micro_batch_size or run.plan.train.batch_size
        results = evaluate_split(
            run,
            split,
            reopened.precision,
            batch_size=settings.batch_size or 2 * micro,
            metrics=settings.metrics,
        )
    return {
        f"{r.view.name}/{name}" if r.view.name else name: value
        for r in results
        for name, value in r.values.items()
    }


def predict(
    folder: str | Path,
    rows: Iterable[str | dict[str, Any]],
    *,
    batch_size: int = 64,
    overrides: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Predict with the final weights of a run, batch by batch.

    Args:
        folder: The run folder.
        rows: Texts (the task's first input), or rows with its inputs by role or by the recipe's column.
        batch_size: Rows of a forward pass.
        overrides: Changes of the recipe.

    Yields:
        A record a row: prediction and probabilities.

    Raises:
        DataError: a row lacks an input.
    """
    import torch

    from sft_engine.devices import enough_memory, own_state
    from sft_engine.flow import Batch

    launch.require_one_process("predict")
    smaller = "set a smaller batch size (`--batch-size`)"
    with own_state(0), enough_memory(smaller):
        reopened = _reopen(Path(folder), overrides, rows={})
    run = reopened.run
    run.model.eval()
    for chunk in _chunks(rows, batch_size):
        named = [_by_role(row, run.task.inputs, run.plan.data.columns) for row in chunk]
        inputs = run.backbone.collate(run.backbone.encode_rows(named, run.task))
        batch = Batch(inputs=inputs, targets={}, ids=list(range(len(chunk))))
        batch.to(run.device)
        with enough_memory(smaller), torch.no_grad(), reopened.precision.autocast():
            outputs = run.backbone.forward(run.wrapped, batch.inputs)
            predictions = run.task.predictions(outputs, batch)
        yield from run.task.records({name: t.cpu() for name, t in predictions.items()})


def _by_role(
    row: str | dict[str, Any], inputs: Mapping[str, bool], columns: Mapping[str, str]
) -> dict[str, Any]:
    """Return a row's inputs by role; the names of the recipe's columns stand for their roles."""
    if isinstance(row, str):
        return {next(iter(inputs)): row}
    names = {role: role if role in row else columns.get(role, role) for role in inputs}
    for role, needed in inputs.items():
        if needed and row.get(names[role]) is None:
            raise DataError(
                f"a row to predict has no {names[role]!r}, found: {', '.join(row)}; name its columns "
                "by role, or as the recipe's data.columns does"
            )
    return {role: row[name] for role, name in names.items() if row.get(name) is not None}


@dataclass(frozen=True)
class ResumeProof:
    """Two runs of one recipe, one of them interrupted.

    Args:
        steps: Steps of each run.
        interrupted_at: Step before which the second one was interrupted and resumed elsewhere.
        uninterrupted: SHA-256 of the final state of the first run.
        resumed: SHA-256 of the final state of the second run.
        loss_equal: Whether every recorded loss is the same number.
    """

    steps: int
    interrupted_at: int
    uninterrupted: str
    resumed: str
    loss_equal: bool

    @property
    def equal(self) -> bool:
        """Whether resuming changed nothing."""
        return self.uninterrupted == self.resumed and self.loss_equal


def verify_resume(
    recipe: RecipeLike,
    *,
    overrides: Sequence[str] = (),
    steps: int = 12,
    interrupt_at: int = 5,
    progress: Progress | None = None,
) -> ResumeProof:
    """Show that a recipe, with its plugins, resumes bit for bit.

    Trains `steps` steps in this process; then trains again, interrupts before step `interrupt_at`, and
    resumes in a fresh process.
    """
    launch.require_one_process("verify-resume")
    from sft_engine.training import train

    # A record a step, and no thinning of them, so that every loss is compared.
    short = [*overrides, f"train.steps={steps}", "train.log_every=1"]
    planned = check(recipe, overrides=short)
    with tempfile.TemporaryDirectory(prefix="sft-verify-") as scratch:
        whole = Path(scratch, "whole")
        outcome = train(planned, whole, progress=progress)
        parted = Path(scratch, "parted")
        try:
            train(planned, parted, progress=progress, stop_after=interrupt_at)
        except Interrupted:
            resumed = _resume_elsewhere(parted)
        else:
            raise CheckpointError(
                f"there is no step {interrupt_at} to interrupt: use a larger --steps"
            )
        return ResumeProof(
            steps=steps,
            interrupted_at=interrupt_at,
            uninterrupted=outcome.fingerprint,
            resumed=resumed["fingerprint"],
            loss_equal=_losses(whole) == _losses(parted),
        )


def _resume_elsewhere(folder: Path) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "sft_engine", "resume", str(folder), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    if process.returncode:
        raise SftError(f"the fresh process could not resume: {process.stderr.strip()[-2000:]}")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["step"], r["loss"]) for r in records if r["kind"] == "train"]


def choose_folder(plan: Plan, output: str | Path | None) -> Path:
    """Return the run folder: the one asked for, or the first free `runs/NAME`.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    name = plan.recipe.path.stem if plan.recipe.path else "run"
    folder = Path("runs", name) if output is None else Path(output)
    try:
        number = 1
        while output is None and _holds_something(folder):
            number += 1
            folder = Path("runs", f"{name}-{number}")
        _require_usable(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be the run folder: {reason_of(error)}, or choose another with --output"
        ) from error
    return folder


def _require_usable(folder: Path) -> None:
    parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not parent.is_dir():
        what = "it" if parent == folder else parent
        raise OutputError(
            f"{folder} cannot be the run folder: {what} is a file; choose another with --output"
        )
    if _holds_something(folder):
        other = (
            f", or go on with the run in it by `sft-engine resume {folder}`"
            if (folder / "recipe.toml").exists()
            else ""
        )
        raise OutputError(f"{folder} is not empty: choose another folder with --output{other}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder} cannot be written: no permission in {parent}; choose another with --output"
        )
    usage = shutil.disk_usage(parent)
    if usage.total and usage.free < 1 << 20:  # file systems without disk have no total
        raise OutputError(
            f"{folder} cannot be written: the disk is full; make room, or choose another with --output"
        )


def _holds_something(folder: Path) -> bool:
    """Say whether a folder holds more than what a killed process had not finished to write."""
    return folder.is_dir() and any(not p.name.startswith(".tmp-") for p in folder.iterdir())


def _recipe(recipe: RecipeLike, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe.with_overrides(overrides) if overrides else recipe
    return load_recipe(recipe, overrides)


def _recipe_of(folder: Path) -> Path:
    path = folder / "recipe.toml"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a run folder: it has no recipe.toml")
    return path


def _reopen(
    folder: Path,
    overrides: Sequence[str],
    data: str | Path | None = None,
    split: str = "test",
    rows: dict[str, Any] | None = None,
) -> Reopened:
    planned = check(_recipe_of(folder), overrides=overrides)
    if not (folder / "model").exists():
        raise CheckpointError(
            f"{folder} has no model/ yet: `sft-engine resume {folder}` finishes it"
        )
    from sft_engine.assemble import reopen

    names = json.loads((folder / "run.json").read_text(encoding="utf-8"))["label_names"]
    if data is not None:
        from sft_engine.builtin.data import read_file

        rows = {split: read_file(Path(data))}
    return reopen(planned, folder, tuple(names), rows)


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
