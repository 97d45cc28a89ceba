"""What the command line does, as functions for notebooks: typed, without global state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sft_engine import launch
from sft_engine.catalog import Plan
from sft_engine.catalog import plan as make_plan
from sft_engine.errors import CheckpointError, DataError
from sft_engine.interruption import Signals
from sft_engine.recipe import Recipe, load_recipe
from sft_engine.run_folder import choose_folder

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine.assemble import Reopened
    from sft_engine.comparing import Comparison
    from sft_engine.diagnosis import Finding
    from sft_engine.exporting import Exported
    from sft_engine.flow import Run
    from sft_engine.lr_range import RangeSettings, RangeTest
    from sft_engine.lr_range.curve import Suggestion
    from sft_engine.study import Study, StudySettings
    from sft_engine.timetable import Timetable
    from sft_engine.training import Outcome, Progress
    from sft_engine.tuning import Tuned, TuneSettings

RecipeLike = str | Path | Recipe

FILE_ROLES = ("image", "audio")
"""Input roles whose values are files."""


def check(recipe: RecipeLike, *, overrides: Sequence[str] = ()) -> Plan:
    """Check a recipe without building or writing anything; imports no torch.

    Raises:
        RecipeError: with every problem that was found, a line each.
    """
    return make_plan(given_recipe(recipe, overrides))


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
    per_class: bool = False,
) -> dict[str, Any]:
    """Evaluate the final weights of a run.

    Args:
        folder: The run folder.
        split: Split of the recipe's data.
        data: A csv, jsonl or parquet file with the recipe's columns to evaluate instead; with images
            or recordings also a folder with a folder for each class.
        overrides: Changes of the recipe, such as `evaluation.batch_size=8` or `data.columns.text=…`.
        per_class: Add precision, recall, F1 and support of each class, however many there are.

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
            metrics=_metrics_of(run, per_class=per_class),
        )
    return {
        f"{r.view.name}/{name}" if r.view.name else name: value
        for r in results
        for name, value in r.values.items()
    }


def _metrics_of(run: Run, *, per_class: bool) -> tuple[str, ...]:
    """Return the names of the recipe's metrics; empty for the task's own choice."""
    from sft_engine.metrics import BY_CLASS, MANY_CLASSES

    names, head = run.plan.evaluation.metrics, run.task.head
    if not per_class or head.kind == "regression" or not (names or head.outputs > MANY_CLASSES):
        return names
    whole = names or (run.task.main_metric, "balanced-accuracy", "f1", "nll")
    return tuple(dict.fromkeys((*whole, *BY_CLASS)))


def predict(
    folder: str | Path,
    rows: Iterable[str | dict[str, Any]],
    *,
    batch_size: int = 64,
    overrides: Sequence[str] = (),
    explain: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Predict with the final weights of a run, batch by batch.

    Args:
        folder: The run folder.
        rows: The task's first input (a text, the path of an image or a recording), or rows with its
            inputs by role or by the recipe's column.
        batch_size: Rows of a forward pass.
        overrides: Changes of the recipe.
        explain: Name of an explanation of each prediction; empty for the recipe's own, or integrated
            gradients if it has none; None for no explanation.

    Yields:
        A record a row: prediction and probabilities; with `explain` also `explanation`, as
        `Explained.record` gives it. With images or recordings and `data.on_error = "skip"` also `error`:
        why a broken one has no prediction.

    Raises:
        DataError: a row lacks an input, or an image or a recording is broken.
        RecipeError: there is no such explanation, or it cannot explain this model.
    """
    import torch

    from sft_engine import explaining
    from sft_engine.devices import enough_memory, own_state
    from sft_engine.flow import Batch

    launch.require_one_process("predict")
    smaller = "set a smaller batch size (`--batch-size`)"
    if explain is not None:
        planned, _ = finished_run(Path(folder), overrides)
        overrides = [*overrides, *explaining.chosen(planned.recipe, explain, planned.catalog)]
    with own_state(0), enough_memory(smaller):
        reopened = _reopen(Path(folder), overrides, rows={})
    run = reopened.run
    run.model.eval()
    if explain is not None:
        explaining.explanation_of(run)[1].prepare(run)

    def plain(named: list[dict[str, Any]]) -> list[dict[str, Any]]:
        inputs = run.backbone.collate(run.backbone.encode_rows(named, run.task))
        batch = Batch(inputs=inputs, targets={}, ids=list(range(len(named))))
        batch.to(run.device)
        with enough_memory(smaller), torch.no_grad(), reopened.precision.autocast():
            outputs = run.backbone.forward(run.wrapped, batch.inputs)
            predictions = run.task.predictions(outputs, batch)
        predictions = {name: t.cpu() for name, t in predictions.items()}
        records = run.task.records(predictions)
        if explain is None:
            return records
        with enough_memory(
            "set `--set train.micro_batch_size=…` smaller, by which it is explained"
        ):
            found = explaining.explain(run, named, predictions)
        return [
            {**record, "explanation": each.record()}
            for record, each in zip(records, found, strict=True)
        ]

    records: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = plain
    skip = run.plan.data.on_error == "skip"
    if "image" in run.task.inputs:
        from sft_engine.images import given as images

        records = images.predicting(plain, skip=skip)
    elif "audio" in run.task.inputs:
        from sft_engine.audio import given as audio

        records = audio.predicting(plain, skip=skip)
    for chunk in _chunks(rows, batch_size):
        yield from records([_by_role(row, run.task.inputs, run.plan.data.columns) for row in chunk])


def compare(
    runs: Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    *,
    metric: str = "",
    view: str = "",
    margin: float | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    output: str | Path | None = None,
) -> Comparison:
    """Say which of several finished runs or studies is better, and with what certainty.

    Args:
        runs: Run folders, study folders, or texts `NAME=RUN,RUN` for several runs of one recipe; or lists
            of run folders by name.
        metric: By which to compare; empty for the task's main metric.
        view: Compare on this view alone; empty for the clean one, and every probe besides.
        margin: Differences up to this size, in units of the metric, do not matter; None if nobody says so.
        level: Of the comparison: 1 - level is the chance of a false alarm.
        resamples: Of the bootstrap over examples; what is drawn is always the same.
        output: A JSON file for all that was found, with the sections of a report.

    Returns:
        The verdict in words, and all figures behind it.

    Raises:
        CheckpointError: a folder holds no finished run.
        DataError: the runs did not predict the same examples.
        RecipeError: there is no such metric or view, or an option is out of range.
        OutputError: the file cannot be written.
    """
    launch.require_one_process("compare")
    from sft_engine.comparing import compare_runs, write_comparison

    found = compare_runs(
        runs, metric=metric, view=view, margin=margin, level=level, resamples=resamples
    )
    if output is not None:
        write_comparison(found, Path(output))
    return found


def diagnose(folder: str | Path) -> list[Finding]:
    """Say what is wrong with a run, the worst first: from its records alone, whether it has ended or not.

    Raises:
        CheckpointError: the folder holds no run, or its records cannot be read.
    """
    from sft_engine.diagnosis import findings_of, read_evidence

    return findings_of(read_evidence(Path(folder)))


def file_column(folder: str | Path, *, overrides: Sequence[str] = ()) -> tuple[str, str]:
    """Return the role of the files that a run reads, `image` or `audio`, and their column.

    Both are empty if its task is about something else.

    Raises:
        CheckpointError: the folder holds no run, or one that has not ended.
    """
    planned, _ = finished_run(Path(folder), overrides)
    role = _file_role(planned)
    return role, str(planned.data.columns.get(role, role))


def _file_role(planned: Plan) -> str:
    task = next(each for each in planned.components if each.kind == "task")
    inputs = task.load().inputs
    return next((role for role in FILE_ROLES if role in inputs), "")


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
    planned, names = finished_run(Path(folder), alone)
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


def report(folder: str | Path, *, output: str | Path | None = None, markdown: bool = False) -> Path:
    """Write the report of a run, a study or a comparison: a page that opens offline, or Markdown.

    Args:
        folder: The folder of it; of a run that has not ended, too.
        output: The file; None for `report.html`, or `report.md`, in the folder.
        markdown: Write a Markdown summary.

    Returns:
        The file.

    Raises:
        CheckpointError: the folder holds nothing to report.
        OutputError: the file cannot be written.
    """
    from sft_engine.reporting import write_report

    return write_report(Path(folder), None if output is None else Path(output), markdown=markdown)


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
        loaded = given_recipe(recipe, ())
        from sft_engine.tuning import search

        return search(loaded, overrides, Path(output), settings, signals, say)


def stability(
    recipe: RecipeLike,
    *,
    output: str | Path,
    settings: StudySettings | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Study:
    """Train a recipe many times, with other training examples and seeds, and say how far that matters.

    Args:
        recipe: A file, or a recipe that was loaded.
        output: The folder of the study; if it holds this one already, it goes on.
        settings: Which runs, and how they are carried out; None for 4 draws times 4 seeds.
        overrides: `KEY=VALUE` texts as for `--set`; they hold for all runs.
        say: Shows a line.

    Raises:
        SftError: one sentence on what stopped the study; the same call goes on.
    """
    launch.require_one_process("stability")
    with Signals() as signals:
        loaded = given_recipe(recipe, overrides)
        from sft_engine.study import StudySettings
        from sft_engine.study import stability as carry_out

        return carry_out(loaded, Path(output), settings or StudySettings(), signals, say)


def given_recipe(recipe: RecipeLike, overrides: Sequence[str]) -> Recipe:
    """Return a recipe that was loaded, or load it from its file.

    Raises:
        RecipeError: it cannot be read.
    """
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
    planned, names = finished_run(folder, overrides)
    from sft_engine.assemble import reopen

    if data is not None:
        rows = {split: _read_data(Path(data), _file_role(planned))}
    return reopen(planned, folder, names, rows)


def _read_data(path: Path, role: str) -> Dataset:
    """Read a table, or a folder of classes of the files that a role stands for."""
    if role and path.is_dir():
        from sft_engine.builtin.class_folders import FILES

        return FILES[role].read(path)
    from sft_engine.builtin.data import read_file

    return read_file(path)


def finished_run(folder: Path, overrides: Sequence[str]) -> tuple[Plan, tuple[str, ...]]:
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
