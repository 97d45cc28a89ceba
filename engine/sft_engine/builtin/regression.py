"""Regression on anything: the part of a task that does not depend on its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, float32

from sft_engine import metrics
from sft_engine.builtin import labels as label_columns
from sft_engine.builtin import losses
from sft_engine.builtin.targets import collate, with_target
from sft_engine.components import Head, logits_of
from sft_engine.errors import DataError
from sft_engine.flow import LossTerm

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine.components import Example
    from sft_engine.flow import Batch


class Regression:
    """Predict one or several numbers for an example; independent of what it is.

    After `prepare` the column `label` holds a list of floats.
    """

    inputs: ClassVar[Mapping[str, bool]] = {}
    target = "label"

    def __init__(self, objective: losses.Objective, delta: float) -> None:
        self.objective = objective
        self.delta = delta
        self.names: tuple[str, ...] = ("label",)

    def prepare(
        self, splits: dict[str, Dataset], label_names: tuple[str, ...]
    ) -> dict[str, Dataset]:
        """Turn the column `label` into lists of floats; learn how many there are.

        Raises:
            DataError: numbers are missing, unreadable or infinite, or rows differ in their number.
        """
        numbers = {
            name: label_columns.read_numbers(rows, self.target, name)
            for name, rows in splits.items()
            if self.target in rows.column_names
        }
        widths = {name: values.shape[1] for name, values in numbers.items()}
        self.names = tuple(label_names) or self._default_names(next(iter(widths.values()), 1))
        for name, width in widths.items():
            if width != len(self.names):
                raise DataError(
                    f"[data] split '{name}' has {width} numbers a row, but there are "
                    f"{len(self.names)} targets: {label_columns.show_names(self.names)}; "
                    "check data.label_names."
                )
        return {
            name: with_target(rows, numbers[name]) if name in numbers else rows
            for name, rows in splits.items()
        }

    def _default_names(self, width: int) -> tuple[str, ...]:
        return ("label",) if width == 1 else tuple(f"label.{i}" for i in range(width))

    @property
    def head(self) -> Head:
        """One output a number."""
        return Head(kind="regression", outputs=len(self.names), names=self.names)

    def targets(self, examples: list[Example], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Collate `label`: (n, outputs); nothing if the examples have none."""
        return collate(examples, float32)

    def units(self, batch: Batch) -> dict[str, float]:
        """Count the examples, as `item`."""
        return {"item": float(len(batch.ids))}

    def loss(self, outputs: Any, batch: Batch) -> LossTerm:
        """Return the objective, averaged over outputs and summed over examples, per `item`."""
        return LossTerm("task", self._losses(logits_of(outputs), batch.targets["label"]).sum())

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        return losses.regression_loss(outputs, target, self.objective, self.delta)

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Keep the outputs as `logits` (n, outputs); with targets also `label` and `loss`."""
        kept = {"logits": losses.at_least_float32(logits_of(outputs)).reshape(len(batch.ids), -1)}
        if "label" in batch.targets:
            kept["label"] = batch.targets["label"]
            kept["loss"] = self._losses(kept["logits"], kept["label"])
        return kept

    def metrics(self, predictions: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
        """Compute metrics by name; by default mse, rmse, mae, r2, pearson and spearman.

        Raises:
            RecipeError: there is no such metric.
        """
        if "label" not in predictions:
            return {}
        return metrics.regression(
            predictions["logits"], predictions["label"], predictions["loss"], self.names, names
        )

    @property
    def main_metric(self) -> str:
        """Mean squared error."""
        return "mse"

    def records(self, predictions: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return `prediction` and, if known, the true `label`: a number, or numbers by name."""
        records = [{"prediction": self._show(row)} for row in predictions["logits"].tolist()]
        if "label" in predictions:
            for record, row in zip(records, predictions["label"].tolist(), strict=True):
                record["label"] = self._show(row)
        return records

    def _show(self, row: list[float]) -> Any:
        return row[0] if len(row) == 1 else dict(zip(self.names, row, strict=True))
