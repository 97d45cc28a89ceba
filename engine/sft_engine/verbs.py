"""What the command line does, as functions for notebooks: typed, without global state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sft_engine import launch
from sft_engine.catalog import Plan
from sft_engine.catalog import plan as make_plan
from sft_engine.errors import CheckpointError, DataError, Interrupted, OutputError, SftError
from sft_engine.interruption import Signals
from sft_engine.recipe import Recipe, load_recipe
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine.assemble import Reopened
    from sft_engine.exporting import Exported
    from sft_engine.lr_range import RangeSettings, RangeTest
    from sft_engine.lr_range.curve import Suggestion
    from sft_engine.timetable import Timetable
    from sft_engine.training import Outcome, Progress
    from sft_engine.tuning import Tuned, TuneSettings

RecipeLike = str | Path | Recipe

IMAGE_ROLE = "image"


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
        data: A csv, jsonl or parquet file with the recipe's columns to evaluate instead; with images
            also a folder with a folder for each class.
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
        rows: The task's first input (a text, the path of an image), or rows with its inputs by role
            or by the recipe's column.
        batch_size: Rows of a forward pass.
        overrides: Changes of the recipe.

    Yields:
        A record a row: prediction and probabilities. With images and `data.on_error = "skip"` also
        `error`: why a broken image has no prediction.

    Raises:
        DataError: a row lacks an input, or an image is broken.
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

    def plain(named: list[dict[str, Any]]) -> list[dict[str, Any]]:
        inputs = run.backbone.collate(run.backbone.encode_rows(named, run.task))
        batch = Batch(inputs=inputs, targets={}, ids=list(range(len(named))))
        batch.to(run.device)
        with enough_memory(smaller), torch.no_grad(), reopened.precision.autocast():
            outputs = run.backbone.forward(run.wrapped, batch.inputs)
            predictions = run.task.predictions(outputs, batch)
        return run.task.records({name: t.cpu() for name, t in predictions.items()})

    records: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = plain
    if IMAGE_ROLE in run.task.inputs:
        from sft_engine.images.given import predicting

        records = predicting(plain, skip=run.plan.data.on_error == "skip")
    for chunk in _chunks(rows, batch_size):
        yield from records([_by_role(row, run.task.inputs, run.plan.data.columns) for row in chunk])


def image_column(folder: str | Path, *, overrides: Sequence[str] = ()) -> str:
    """Return the column of images that a run reads; empty if its task is about something else.

    Raises:
        CheckpointError: the folder holds no run, or one that has not ended.
    """
    planned, _ = _finished(Path(folder), overrides)
    if not _reads_images(planned):
        return ""
    return str(planned.data.columns.get(IMAGE_ROLE, IMAGE_ROLE))


def _reads_images(planned: Plan) -> bool:
    task = next(each for each in planned.components if each.kind == "task")
    return IMAGE_ROLE in task.load().inputs


def export(
    folder: str | Path,
    format: str,  # noqa: A002 (the word that users know)
    *,
    output: str | Path | None = None,
    opset: int | None = None,
    dtype: str = "fp32",
    overrides: Sequence[str] = (),
) -> Exported:
    """Export the final weights of a run for others to load, and compare the result with the run.

    Args:
        folder: The run folder.
        format: `onnx`, `torch-export`, or one that the backbone's library reads: `hf`, `timm`, …
        output: A new or empty folder; None for `RUN/export/FORMAT`.
        opset: Version of ONNX's operators; None for what torch recommends.
        dtype: Of the exported weights: `fp32`, `bf16` or `fp16`, whatever the run trained in.
        overrides: Changes of the recipe, such as where its data is now.

    Returns:
        What was written, and how far its outputs are from the run's.

    Raises:
        ExportError: the model cannot be exported, or gives other outputs when it is; nothing is left.
        OutputError: the output folder holds something, or cannot be written.
    """
    launch.require_one_process("export")
    alone = [*overrides, "train.device=cpu", "train.compile=false"]
    planned, names = _finished(Path(folder), alone)
    from sft_engine.devices import enough_memory, own_state
    from sft_engine.exporting import export_run

    with own_state(0), enough_memory("take a machine with more memory"):
        return export_run(
            planned,
            Path(folder),
            names,
            form=format,
            output=None if output is None else Path(output),
            opset=opset,
            dtype=dtype,
        )


def _by_role(
    row: str | dict[str, Any], inputs: Mapping[str, bool], columns: Mapping[str, str | list[str]]
) -> dict[str, Any]:
    """Return a row's inputs by role; the names of the recipe's columns stand for their roles."""
    if isinstance(row, str):
        return {next(iter(inputs)): row}
    from sft_engine.tables import numbers_of

    tables = {role: names for role, names in columns.items() if not isinstance(names, str)}
    row = {role: numbers_of(row, names) for role, names in tables.items() if role not in row} | row
    names = {role: role if role in row else str(columns.get(role, role)) for role in inputs}
    for role, needed in inputs.items():
        if needed and row.get(names[role]) is None:
            raise DataError(
                f"a row to predict has no {names[role]!r}, found: {', '.join(row)}; name its columns "
                "by role, or as the recipe's data.columns does"
            )
    return {role: row[name] for role, name in names.items() if row.get(name) is not None}


def lr_find(
    recipe: RecipeLike,
    *,
    overrides: Sequence[str] = (),
    settings: RangeSettings | None = None,
    apply: Suggestion | None = None,
    output: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RangeTest:
    """Find a learning rate: train a few steps with a rising one, and look at the loss.

    Args:
        recipe: A file, or a recipe that was loaded.
        overrides: `KEY=VALUE` texts as for `--set`.
        settings: From where to where, and in how many steps; None for the usual ones.
        apply: Rule whose suggestion is written into the recipe file; None changes nothing.
        output: A file for the picture (`.png`, `.svg`) or the numbers (`.json`).
        say: Shows a line.

    Raises:
        RecipeError: there is no suggestion to apply, or the file cannot take it.
        OutputError: a file cannot be written.
    """
    launch.require_one_process("lr-find")
    planned = check(recipe, overrides=overrides)
    from sft_engine.lr_range import DEFAULT, applying, find, picture

    own = bool(planned.phases) and planned.phases[0].lr is not None
    where: applying.Where = ("phase", 0, "lr") if own else ("optimizer", "lr")
    if output is not None:
        picture.check_output(Path(output))
    if apply is not None:
        applying.check_appliable(planned.recipe, where, overrides)
    found = find(planned, settings or DEFAULT, say)
    if output is not None:
        picture.write(found, Path(output))
    if apply is not None:
        path, lr = cast("Path", planned.recipe.path), found.chosen(apply)
        found = replace(found, applied=applying.set_number(path, where, lr))
    return found


def groups(recipe: RecipeLike, *, overrides: Sequence[str] = ()) -> Timetable:
    """Return the layer groups of a recipe's model, their learning rates, and what trains when.

    Builds everything that a run needs; trains nothing, and writes no run folder.

    Args:
        recipe: A file, or a recipe that was loaded.
        overrides: `KEY=VALUE` texts as for `--set`.
    """
    launch.require_one_process("groups")
    planned = check(recipe, overrides=overrides)
    from sft_engine.assemble import assemble
    from sft_engine.devices import enough_memory, own_state
    from sft_engine.timetable import timetable

    with own_state(0), enough_memory("take a machine with more memory"):
        return timetable(assemble(planned, Path("runs")))


def tune(
    recipe: RecipeLike,
    *,
    output: str | Path,
    settings: TuneSettings,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Search for the hyper-parameters that are best on the validation split.

    Args:
        recipe: A file, or a recipe that was loaded.
        output: The folder of the study; if it holds this one already, it goes on.
        settings: How many trials, compared by which metric.
        overrides: `KEY=VALUE` texts; a value such as `log(1e-6, 1e-3)` is searched, any other holds
            for all trials.
        say: Shows a line.

    Raises:
        SftError: one sentence on what stopped the search; the same call goes on.
    """
    launch.require_one_process("tune")
    with Signals() as signals:
        loaded = _recipe(recipe, ())
        from sft_engine.tuning import search

        return search(loaded, overrides, Path(output), settings, signals, say)


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

    Trains `steps` steps in this process (a recipe with phases: as many in each as its share); then
    trains again, interrupts before step `interrupt_at`, and resumes in a fresh process.
    """
    launch.require_one_process("verify-resume")
    from sft_engine.training import train

    planned = check_short(recipe, overrides, steps)
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
            steps=_report_of(whole)["steps"],
            interrupted_at=interrupt_at,
            uninterrupted=outcome.fingerprint,
            resumed=resumed["fingerprint"],
            loss_equal=_losses(whole) == _losses(parted),
        )


def check_short(recipe: RecipeLike, overrides: Sequence[str], steps: int) -> Plan:
    """Check a recipe shortened to some steps, with a record of each; phases share them equally."""
    # A record a step, and no thinning of them, so that every loss is compared.
    short = [*overrides, f"train.steps={steps}", "train.log_every=1"]
    phases = len(_recipe(recipe, overrides).phases)
    short += [f"phase.{index}.steps={-(-steps // phases)}" for index in range(phases)]
    return check(recipe, overrides=short)


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
    return _report_of(folder)


def _report_of(folder: Path) -> dict[str, Any]:
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
    planned, names = _finished(folder, overrides)
    from sft_engine.assemble import reopen

    if data is not None:
        rows = {split: _read_data(Path(data), images=_reads_images(planned))}
    return reopen(planned, folder, names, rows)


def _read_data(path: Path, *, images: bool) -> Dataset:
    if images and path.is_dir():
        from sft_engine.builtin.image_data import read_folder

        return read_folder(path)
    from sft_engine.builtin.data import read_file

    return read_file(path)


def _finished(folder: Path, overrides: Sequence[str]) -> tuple[Plan, tuple[str, ...]]:
    """Return the recipe of a finished run, and what training called the outputs.

    Raises:
        CheckpointError: the folder holds no run, or one that has not ended.
    """
    planned = check(_recipe_of(folder), overrides=overrides)
    if not (folder / "model").exists():
        raise CheckpointError(
            f"{folder} has no model/ yet: `sft-engine resume {folder}` finishes it"
        )
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return planned, tuple(facts["label_names"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'run.json'} cannot be read ({type(error).__name__}): it holds the label names; "
            "put it back, or start the recipe again with `sft-engine run`"
        ) from error


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
