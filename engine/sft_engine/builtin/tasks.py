"""Tasks: what is learned, whatever the backbone.

How the tasks to come fit in the same protocol:

* token-classification: `targets(examples, inputs)` spreads word labels over the tokens in `inputs`, -100
  elsewhere; `units` adds `token`, the number of targets that are not -100; `loss` is
  `cross_entropy_sum` per `token`.
* sequence to sequence, causal language models: the same with `targets` taken from the encoded answer.
* detection: `targets` returns boxes padded to the longest list with a mask, so that the first
  dimension stays the example; `units` adds `box`; `predictions` keeps a fixed number of boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from sft_engine.builtin.classification import Classification
from sft_engine.builtin.regression import Regression
from sft_engine.errors import DataError, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset


class TextClassification(Classification):
    """Give a text, or a pair of texts, one of many classes or any of many labels.

    Args:
        labels: `single` for exactly one class a text, `multi` for any number of labels.
        class_weights: `none`, `balanced` (rare classes count more, by their number in training), or
            one number a class; with `multi` a weight of each label's positive examples.
        label_smoothing: Share of the target that is spread evenly over all classes.
        separator: With `multi`, splits a string into labels, such as `;`; empty for one label.
    """

    inputs: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False}

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
        """Check that texts are texts, then encode labels; see `Classification.prepare`."""
        check_texts(splits, self.inputs)
        return super().prepare(splits, label_names)


class ImageClassification(Classification):
    """Give an image one of many classes, or any of many labels.

    Args:
        labels: `single` for exactly one class an image, `multi` for any number of labels.
        class_weights: `none`, `balanced` (rare classes count more, by their number in training), or
            one number a class; with `multi` a weight of each label's positive examples.
        label_smoothing: Share of the target that is spread evenly over all classes.
        separator: With `multi`, splits a string into labels, such as `;`; empty for one label.
    """

    inputs: ClassVar[Mapping[str, bool]] = {"image": True}

    def __init__(
        self,
        labels: Literal["single", "multi"] = "single",
        class_weights: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        separator: str = "",
    ) -> None:
        super().__init__(labels, class_weights, label_smoothing, separator)

    def check(self) -> None:
        """Raise RecipeError where the libraries that read images are not installed."""
        missing = [name for name in ("PIL", "torchvision") if find_spec(name) is None]
        if missing:
            raise RecipeError(
                f'[task] use = "image-classification" needs {" and ".join(missing)}, which this Python '
                "lacks: pip install 'sft-engine[images]'."
            )


class AudioClassification(Classification):
    """Give a recording one of many classes, or any of many labels.

    Args:
        labels: `single` for exactly one class a recording, `multi` for any number of labels.
        class_weights: `none`, `balanced` (rare classes count more, by their number in training), or
            one number a class; with `multi` a weight of each label's positive examples.
        label_smoothing: Share of the target that is spread evenly over all classes.
        separator: With `multi`, splits a string into labels, such as `;`; empty for one label.
    """

    inputs: ClassVar[Mapping[str, bool]] = {"audio": True}

    def __init__(
        self,
        labels: Literal["single", "multi"] = "single",
        class_weights: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        separator: str = "",
    ) -> None:
        super().__init__(labels, class_weights, label_smoothing, separator)

    def check(self) -> None:
        """Raise RecipeError where the libraries that read recordings are not installed."""
        missing = [name for name in ("soundfile", "scipy") if find_spec(name) is None]
        if missing:
            raise RecipeError(
                f'[task] use = "audio-classification" needs {" and ".join(missing)}, which this Python '
                "lacks: pip install 'sft-engine[audio]'."
            )


class TextRegression(Regression):
    """Predict one or several numbers for a text, or for a pair of texts.

    Args:
        objective: `squared` error, `absolute` error, or `huber`, which forgives outliers.
        delta: Error from which on `huber` grows linearly.
    """

    inputs: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False}

    def __init__(
        self,
        objective: Literal["squared", "absolute", "huber"] = "squared",
        delta: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__(objective, delta)

    def prepare(
        self, splits: dict[str, Dataset], label_names: tuple[str, ...]
    ) -> dict[str, Dataset]:
        """Check that texts are texts, then read numbers; see `Regression.prepare`."""
        check_texts(splits, self.inputs)
        return super().prepare(splits, label_names)


def check_texts(splits: Mapping[str, Dataset], roles: Iterable[str]) -> None:
    """Raise DataError if a column of a text role holds something else than text."""
    for split, rows in splits.items():
        for role in roles:
            feature = rows.features.get(role)
            if feature is not None and getattr(feature, "dtype", "") not in (
                "string",
                "large_string",
            ):
                found = getattr(feature, "dtype", type(feature).__name__)
                raise DataError(
                    f"[data] split '{split}': the column '{role}' holds {found}, not text; check "
                    "data.columns."
                )
