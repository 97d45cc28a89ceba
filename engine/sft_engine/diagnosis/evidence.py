"""What the rules judge: the records of a run, sorted, as far as they are there."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The records of a run, those of its last phase where phases differ.

    Args:
        recipe: Its tables, as resolved.
        start: What was seen of the data before training; empty in runs of older versions.
        train: Records of kind `train`.
        looks: Evaluations of the validation split in the plain view, each with what `diagnostics` added
            at the same step.
        last: The same of the final evaluation; empty if there was none.
        anchors: Records of the anchor set, by step.
        verdicts: Steps that a component judged.
        ended: Whether training is over.
        failure: The sentence of a run that failed.
        label_names: Of the outputs.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    start: Record = field(default_factory=dict)
    train: Sequence[Record] = ()
    looks: Sequence[Record] = ()
    last: Record = field(default_factory=dict)
    anchors: Sequence[Record] = ()
    verdicts: Sequence[Record] = ()
    ended: bool = True
    failure: str = ""
    label_names: tuple[str, ...] = ()

    # --- position --------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The latest step that anything is known of."""
        steps = [int(r["step"]) for r in (*self.train[-1:], *self.looks[-1:], *self.verdicts[-1:])]
        return max(steps, default=0)

    @property
    def progress(self) -> float:
        """Share of the run that is done; 1 if it has ended, or if its length is not known."""
        total = int(self.start.get("total_steps", 0))
        return 1.0 if self.ended or not total else min(1.0, self.step / total)

    # --- series ----------------------------------------------------------------------------------

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Training loss, one value a record: the mean of its windows."""
        return _column(self.train, "loss")

    @cached_property
    def start_loss(self) -> float:
        """Training loss at the begin: of the first twentieth of the records."""
        head = self.losses[: max(1, len(self.losses) // 20)]
        return float(np.mean(head)) if len(head) else math.nan

    @cached_property
    def end_loss(self) -> float:
        """Training loss at the end: of the last fifth of the records."""
        tail = self.losses[-max(1, len(self.losses) // 5) :]
        return float(np.mean(tail)) if len(tail) else math.nan

    @cached_property
    def updates(self) -> NDArray[np.float64]:
        """Largest relative update of a layer group in one step, at each point where it was measured."""
        values = [max(each.values()) for each in map(updates_of, self.train) if each]
        return np.array(values, dtype=np.float64)

    @property
    def update(self) -> float:
        """What a tenth of the `updates` exceed: that of the highest learning rates; NaN if none is known."""
        return float(np.quantile(self.updates, 0.9)) if len(self.updates) else math.nan

    @property
    def look(self) -> Record:
        """The latest look at the validation split."""
        return self.looks[-1] if self.looks else {}

    @property
    def judged(self) -> Record:
        """The final evaluation, or the latest look if there is none."""
        return self.last or self.look

    # --- what is known of the task ---------------------------------------------------------------

    @property
    def kind(self) -> str:
        """`classification`, `multi-label` or `regression`; in older runs by the name of the task."""
        task = self.recipe.get("task", {})
        if "head" in self.start:
            return str(self.start["head"])
        if str(task.get("use", "")).endswith("regression"):
            return "regression"
        return "multi-label" if task.get("labels") == "multi" else "classification"

    @property
    def chance_loss(self) -> float:
        """Plain loss of always giving the same best answer; NaN if it is not known."""
        return float(self.start.get("chance_loss", math.nan))

    def name_of(self, label: int) -> str:
        """Return what a class is called."""
        return self.label_names[label] if label < len(self.label_names) else str(label)

    def has(self, kind: str, use: str) -> bool:
        """Say whether the recipe names a component."""
        tables = self.recipe.get(kind, ())
        tables = [tables] if isinstance(tables, Mapping) else tables
        return any(table.get("use") == use for table in tables)


def updates_of(record: Record) -> dict[str, float]:
    """Return the relative updates of a training record by layer group."""
    return {k.removeprefix("update/"): float(v) for k, v in record.items() if k[:7] == "update/"}


def gradients_of(record: Record) -> dict[str, float]:
    """Return the gradient norms of a training record by layer group."""
    return {
        k.removeprefix("grad_norm/"): float(v) for k, v in record.items() if k[:10] == "grad_norm/"
    }


def _column(records: Sequence[Record], name: str) -> NDArray[np.float64]:
    return np.array([float(r.get(name, math.nan)) for r in records], dtype=np.float64)


# --- from records ---------------------------------------------------------------------------------


def evidence_of(
    records: Iterable[Record],
    recipe: Mapping[str, Any],
    *,
    ended: bool = True,
    failure: str = "",
    label_names: Sequence[str] = (),
) -> Evidence:
    """Sort records, in the order in which they were written."""
    start: Record = {}
    train: list[Record] = []
    evaluations: dict[tuple[str, int], dict[str, Any]] = {}
    anchors: list[Record] = []
    verdicts: list[Record] = []
    phase = ""
    for record in records:
        kind = record.get("kind")
        if kind == "train":
            phase = str(record.get("phase", ""))
            train.append(record)
        elif kind == "evaluation" and not record.get("view"):
            _see(evaluations, str(record["split"]), record)
        elif kind == "verdict":
            verdicts.append(record)
        elif kind == "diagnostics" and record["of"] == "start":
            start = record
        elif kind == "diagnostics" and record["of"] == "anchor":
            anchors.append(record)
        elif kind == "diagnostics":
            _see(evaluations, str(record["of"]), record)
    looks = [r for (split, _), r in evaluations.items() if split == "validation"]
    finals = [r for (split, _), r in evaluations.items() if split == "test"]
    return Evidence(
        recipe=recipe,
        start=start,
        train=[r for r in train if r.get("phase", "") == phase],
        looks=[r for r in looks if r.get("phase", "") == phase],
        last=finals[-1] if finals else {},
        anchors=anchors,
        verdicts=verdicts,
        ended=ended,
        failure=failure,
        label_names=tuple(label_names),
    )


def _see(evaluations: dict[tuple[str, int], dict[str, Any]], split: str, record: Record) -> None:
    """Lay what is known of one look together; the plain loss has one name."""
    seen = evaluations.setdefault((split, int(record["step"])), {})
    seen.update(record)
    if "loss" not in record and "nll" in record:
        seen.setdefault("loss", record["nll"])
    if "predicted" not in seen and isinstance(record.get("confusion_matrix"), list):
        seen.update(_counts(record["confusion_matrix"]))


def _counts(matrix: Sequence[Any]) -> dict[str, list[int]]:
    """Return what `diagnostics` would have counted, from a confusion matrix of rows = truth."""
    table = np.asarray(matrix)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:  # noqa: PLR2004  (one matrix)
        return {}
    return {
        "predicted": table.sum(axis=0).tolist(),
        "labels": table.sum(axis=1).tolist(),
        "hits": np.diagonal(table).tolist(),
    }


# --- from a run folder ----------------------------------------------------------------------------


def read_evidence(folder: Path) -> Evidence:
    """Read what the rules judge from a run folder, whether the run has ended, failed or goes on.

    Raises:
        CheckpointError: the folder holds no run, or its records cannot be read.
    """
    recipe = folder / "recipe.toml"
    if not recipe.exists():
        raise CheckpointError(f"{folder} is not a run folder: it has no recipe.toml")
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        records = list(read_records(folder / "metrics.jsonl"))
        tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the records of {folder} cannot be read ({type(error).__name__}: {error}): it needs "
            "recipe.toml, run.json and metrics.jsonl as the run wrote them"
        ) from error
    status = facts.get("status", "")
    return evidence_of(
        records,
        tables,
        ended=status not in ("running", "interrupted"),
        failure=str(facts.get("message", "")) if status == "failed" else "",
        label_names=facts.get("label_names", ()),
    )


def read_records(path: Path) -> Iterable[Record]:
    """Yield the records of metrics.jsonl; nothing if there is none yet."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
