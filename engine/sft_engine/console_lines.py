"""The words and numbers of the console, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_engine.flow import Run
    from sft_engine.training import Outcome

SMALL, LARGE = 1e-3, 1e5
"""Outside of these, four decimals would hide or drown a number."""


def first_line(run: Run, precision: str) -> str:
    """Say what runs on how many processes, on what device, in which precision, with how many threads."""
    import torch

    recipe = run.plan.recipe
    name = recipe.path.name if recipe.path else recipe.name
    processes, threads = run.accelerator.num_processes, torch.get_num_threads()
    each = " each" if processes > 1 else ""
    sharded = " (FSDP)" if processes > 1 and run.skeleton is not None else ""
    return (
        f"sft-engine {_version()}: {name} on {processes} process{'es' if processes > 1 else ''}{sharded}, "
        f"{run.device}, {precision}, {threads} thread{'s' if threads > 1 else ''}{each}"
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sft-engine")
    except PackageNotFoundError:
        return "(not installed)"


def second_line(run: Run) -> str:
    """Say how much there is to do, and where it is written."""
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in run.splits.items())
    clock = run.clock
    return (
        f"examples: {sizes}; {clock.total_steps:,} steps, {_division(run)}; run folder {run.folder}"
    )


def _division(run: Run) -> str:
    """Say how steps make epochs, or phases."""
    if not run.phases[1:]:
        return f"{run.clock.steps_per_epoch:,} an epoch"
    return "phases " + ", ".join(f"{phase.name} {phase.steps:,}" for phase in run.phases)


def train_line(record: Mapping[str, Any], total: int, left: str) -> str:
    """Return a training record as a plain line."""
    fields = {"step": f"{record['step']}/{total}", "epoch": f"{record['epoch']:.2f}"}
    fields |= {"phase": record["phase"]} if "phase" in record else {}
    for name in ("loss", "lr", "grad_norm", "examples_per_second"):
        if name in record:
            fields[name] = f"{record[name]:.4g}"
    return _line("train", fields | ({"left": left} if left else {}))


def evaluation_line(record: Mapping[str, Any]) -> str:
    """Return the scalar metrics of an evaluation as a plain line; those of classes are left out."""
    fields = {"split": record["split"], "view": record.get("view"), "step": record["step"]}
    skipped = {*fields, "kind", "epoch", "examples", "seconds"}
    scalars = {
        name: number(value)
        for name, value in record.items()
        if isinstance(value, (int, float)) and "/" not in name and name not in skipped
    }
    return _line(
        "evaluation", {name: value for name, value in fields.items() if value != ""} | scalars
    )


def _line(kind: str, fields: Mapping[str, Any]) -> str:
    return " ".join(
        [kind, *(f"{name}={value}" for name, value in fields.items() if value is not None)]
    )


def number(value: float) -> str:
    """Write a number for a person: whole ones as they are, four digits else, NaN as nan."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if value == 0 or SMALL <= abs(value) < LARGE else f"{value:.3g}"


def time_left(done: int, todo: int, elapsed: float) -> str:
    """Return how long the remaining steps will take at the pace so far; nothing before the first."""
    return clock_time(elapsed / done * todo) if done > 0 else ""


def clock_time(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def written(outcome: Outcome) -> dict[str, str]:
    """Return the paths of what a run has written, by what it is."""
    candidates = {
        "model": "model",
        "report": "report.json",
        "page": "report.html",
        "predictions": f"predictions/{outcome.split}.jsonl",
        "records": "metrics.jsonl",
        "checkpoints": "checkpoints",
    }
    paths = {name: outcome.folder / path for name, path in candidates.items()}
    return {name: str(path) for name, path in paths.items() if path.exists()}


def plain_value(value: Any) -> Any:
    """Return a value as strict JSON has it: paths as text, NaN and infinities as text too."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
