"""Classification of anything: the part of a task that does not depend on its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from sft_engine import metrics
from sft_engine.builtin import labels as label_columns
from sft_engine.builtin import losses
from sft_engine.builtin.labels import MASKED
from sft_engine.builtin.targets import collate, with_target
from sft_engine.components import Head, logits_of
from sft_engine.errors import DataError, RecipeError
from sft_engine.flow import LossTerm

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from sft_engine.components import Example
    from sft_engine.flow import Batch

HALF = 0.5
"""A label is predicted if its probability is above this."""

ClassWeights = Literal["none", "balanced"] | list[float]


class Classification:
    """Give every example one of many classes, or any of many labels; independent of what it is.

    A subclass says what the inputs are, and has the options as parameters of its own constructor.
    After `prepare` the column `label` holds a class id (-100 is neither learned nor counted), or one
    flag a label. In training, targets may also be class probabilities (n, classes), as after mixup.
    """

    inputs: ClassVar[Mapping[str, bool]] = {}
    target = "label"

    def __init__(
        self, labels: str, class_weights: ClassWeights, label_smoothing: float, separator: str
    ) -> None:
        self.multi = labels == "multi"
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.separator = separator
        self.names: tuple[str, ...] = ()
        self.masked = True
        self._weight: Tensor | None = None
        self._weights: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    # --- data ------------------------------------------------------------------------------------

    def prepare(
        self, splits: dict[str, Dataset], label_names: tuple[str, ...]
    ) -> dict[str, Dataset]:
        """Turn the column `label` into class ids or flags; learn the class names and weights.

        A split without that column is returned as it is: there is nothing to compare with.

        Raises:
            DataError: labels are missing, unknown, or all the same.
            RecipeError: class weights do not fit the classes.
        """
        found = {
            name: self._read(rows, name)
            for name, rows in splits.items()
            if self.target in rows.column_names
        }
        if "train" in found:
            self.names = label_columns.learn_names(found["train"], label_names)
        else:
            self.names = tuple(label_names) or self.names
        self._check_names()
        encoded = {name: self._encode(column) for name, column in found.items()}
        self.masked = not self.multi and any((ids == MASKED).any() for ids in encoded.values())
        if "train" in encoded:
            self._weigh(encoded["train"])
        return {
            name: with_target(rows, encoded[name]) if name in encoded else rows
            for name, rows in splits.items()
        }

    def found_names(self, rows: Dataset, split: str) -> tuple[str, ...]:
        """Return the class names of raw training rows, in the order that they would have alone."""
        if self.target not in rows.column_names:
            return ()
        return label_columns.learn_names(self._read(rows, split))

    def strata(self, rows: Dataset) -> np.ndarray | None:
        """Return a number for each raw row, equal where labels are; None if there are no classes."""
        return None if self.multi else self._read(rows, "train").codes

    def _read(self, rows: Dataset, split: str) -> label_columns.Labels:
        if self.multi:
            return label_columns.read_many(rows, self.target, split, self.separator)
        return label_columns.read_single(rows, self.target, split)

    def _encode(self, column: label_columns.Labels) -> np.ndarray:
        if self.multi:
            return label_columns.encode_many(column, self.names)
        return label_columns.encode_single(column, self.names)

    def _check_names(self) -> None:
        if len(self.names) < (1 if self.multi else 2):
            known = f"only the label '{self.names[0]}'" if self.names else "no labels"
            raise DataError(
                f"[data] the split 'train' has {known}; classification needs at least two classes: "
                "check data.columns, or list the names in data.label_names."
            )

    def _weigh(self, encoded: np.ndarray) -> None:
        """Set class weights from training labels."""
        given = self.class_weights
        if given == "none":
            return
        if isinstance(given, str):
            self._weight = self._balanced(torch.from_numpy(encoded))
        elif len(given) == len(self.names) and all(weight >= 0 for weight in given):
            self._weight = torch.tensor(given, dtype=torch.float64)
        else:
            raise RecipeError(
                f"task.class_weights has {len(given)} numbers ({min(given, default=0):g} the least); "
                f"it needs {len(self.names)}, none below 0, in the order of the classes "
                f"{label_columns.show_names(self.names)}."
            )

    @property
    def weight(self) -> Tensor | None:
        """One weight a class in the loss, float64 (classes,); None where all count the same."""
        return self._weight

    def set_weight(self, weight: Tensor) -> None:
        """Let the loss count classes by these weights, from the next batch on.

        Args:
            weight: One number a class, none below 0; with several labels, of the positive examples of each.
        """
        self._weight = weight.double()
        self._weights.clear()

    def _balanced(self, encoded: Tensor) -> Tensor:
        if self.multi:
            return losses.balanced_pos_weights(encoded.sum(dim=0), len(encoded))
        known = encoded[encoded != MASKED]
        return losses.balanced_weights(torch.bincount(known, minlength=len(self.names)))

    @property
    def head(self) -> Head:
        """One output a class."""
        return Head(
            kind="multi-label" if self.multi else "classification",
            outputs=len(self.names),
            names=self.names,
        )

    # --- training --------------------------------------------------------------------------------

    def targets(self, examples: list[Example], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Collate `label`: ids (n,), or flags (n, labels); nothing if the examples have none."""
        return collate(examples, torch.float32 if self.multi else torch.int64)

    def units(self, batch: Batch) -> dict[str, float]:
        """Count the examples that have a target, as `item`, and with class weights their `weight`."""
        label = batch.targets.get("label")
        if label is None:
            return {"item": float(len(batch.ids))}
        if self.multi or label.is_floating_point():
            return {"item": float(len(label))}
        if self.masked:
            label = label[label != MASKED]
        if self._weight is None:
            return {"item": float(len(label))}
        return {"item": float(len(label)), "weight": float(self._weight[label].sum())}

    def loss(self, outputs: Any, batch: Batch) -> LossTerm:
        """Return the summed cross-entropy, weighted and smoothed, per `item`, or per `weight`."""
        logits, target = logits_of(outputs), batch.targets["label"]
        weight = self._weight_for(logits)
        if self.multi:
            value = losses.binary_cross_entropy_sum(logits, target, weight, self.label_smoothing)
            return LossTerm("task", value)
        value = losses.cross_entropy_sum(logits, target, weight, self.label_smoothing)
        return LossTerm("task", value, per="item" if weight is None else "weight")

    def _weight_for(self, logits: Tensor) -> Tensor | None:
        if self._weight is None:
            return None
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        key = (logits.device, dtype)
        if key not in self._weights:
            self._weights[key] = self._weight.to(device=logits.device, dtype=dtype)
        return self._weights[key]

    # --- evaluation ------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Keep `logits` (n, classes); with targets also `label`, and the plain `loss` of each example.

        That loss is neither weighted nor smoothed, so that runs with other options compare.
        """
        kept = {"logits": losses.at_least_float32(logits_of(outputs))}
        if "label" in batch.targets:
            kept["label"] = batch.targets["label"]
            kept["loss"] = losses.example_loss(kept["logits"], kept["label"])
        return kept

    def metrics(self, predictions: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
        """Compute metrics by name; by default accuracy, F1 and more, per class too.

        Raises:
            RecipeError: there is no such metric.
        """
        if "label" not in predictions:
            return {}
        compute = metrics.multi_label if self.multi else metrics.single_label
        return compute(
            predictions["logits"], predictions["label"], predictions["loss"], self.names, names
        )

    @property
    def main_metric(self) -> str:
        """Accuracy, or macro F1 over labels."""
        return "f1" if self.multi else "accuracy"

    def records(self, predictions: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return `prediction`, `probabilities` by class and, if known, the true `label`.

        The prediction is null where the model returned NaN.
        """
        logits = predictions["logits"].double()
        shares = logits.sigmoid() if self.multi else logits.softmax(dim=1)
        chosen = self._many(shares > HALF) if self.multi else self._one(shares.argmax(dim=1))
        broken = shares.isnan().any(dim=1).tolist()
        records: list[dict[str, Any]] = [
            {
                "prediction": None if nan else choice,
                "probabilities": dict(zip(self.names, row, strict=True)),
            }
            for choice, row, nan in zip(chosen, shares.tolist(), broken, strict=True)
        ]
        if "label" in predictions:
            label = predictions["label"]
            truth = self._many(label > HALF) if self.multi else self._one(label)
            for record, true in zip(records, truth, strict=True):
                record["label"] = true
        return records

    def _one(self, ids: Tensor) -> list[Any]:
        return [None if i == MASKED else self.names[i] for i in ids.tolist()]

    def _many(self, flags: Tensor) -> list[Any]:
        return [[n for n, on in zip(self.names, row, strict=True) if on] for row in flags.tolist()]
