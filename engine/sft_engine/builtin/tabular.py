"""Tasks on tables: what is learned from several columns of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow.compute as pc
from annotated_types import Ge, Gt, Lt

from sft_engine.builtin.classification import Classification
from sft_engine.builtin.regression import Regression
from sft_engine.columns import column_of, is_list
from sft_engine.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class TabularClassification(Classification):
    """Give a row of numbers one of many classes or any of many labels.

    The numbers are the columns of `data.columns.features`, by default all columns of numbers.

    Args:
        labels: `single` for exactly one class a row, `multi` for any number of labels.
        class_weights: `none`, `balanced` (rare classes count more, by their number in training), or
            one number a class; with `multi` a weight of each label's positive examples.
        label_smoothing: Share of the target that is spread evenly over all classes.
        separator: With `multi`, splits a string into labels, such as `;`; empty for one label.
    """

    inputs: ClassVar[Mapping[str, bool]] = {"features": True}
    tables: ClassVar[frozenset[str]] = frozenset({"features"})

    def __init__(
        self,
        labels: Literal["single", "multi"] = "single",
        class_weights: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        separator: str = "",
    ) -> None:
        super().__init__(labels, class_weights, label_smoothing, separator)

    def prepare(
        self, splits: dict[str, Dataset], label_names: tuple[str, ...]
    ) -> dict[str, Dataset]:
        """Check that features are numbers, then encode labels; see `Classification.prepare`."""
        check_features(splits)
        return super().prepare(splits, label_names)


class TabularRegression(Regression):
    """Predict one or several numbers from a row of numbers.

    The numbers are the columns of `data.columns.features`, by default all columns of numbers.

    Args:
        objective: `squared` error, `absolute` error, or `huber`, which forgives outliers.
        delta: Error from which on `huber` grows linearly.
    """

    inputs: ClassVar[Mapping[str, bool]] = {"features": True}
    tables: ClassVar[frozenset[str]] = frozenset({"features"})

    def __init__(
        self,
        objective: Literal["squared", "absolute", "huber"] = "squared",
        delta: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__(objective, delta)

    def prepare(
        self, splits: dict[str, Dataset], label_names: tuple[str, ...]
    ) -> dict[str, Dataset]:
        """Check that features are numbers, then read targets; see `Regression.prepare`."""
        check_features(splits)
        return super().prepare(splits, label_names)


def check_features(splits: Mapping[str, Dataset]) -> None:
    """Raise DataError unless every row of every split has the same number of finite features.

    Tables that were made of columns are right already; lists that come from the source may not be.
    """
    widths = {}
    for split, rows in splits.items():
        array = column_of(rows, "features")
        if not is_list(array.type):
            raise DataError(
                f"[data] split '{split}': the column 'features' holds {array.type}, not lists of "
                "numbers; check data.columns."
            )
        lengths = np.unique(np.asarray(pc.list_value_length(array)))
        if len(lengths) > 1:
            raise DataError(
                f"[data] split '{split}': rows have from {lengths[0]} to {lengths[-1]} features; every "
                "row needs as many."
            )
        if not np.isfinite(np.asarray(array.flatten(), dtype=np.float64)).all():
            raise DataError(
                f"[data] split '{split}': a list in 'features' holds a number that is missing or "
                "infinite; all must be finite."
            )
        widths[split] = int(lengths[0])
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{split} {width}" for split, width in widths.items())
        raise DataError(
            f"[data] splits have different numbers of features ({found}); give all the same columns."
        )
