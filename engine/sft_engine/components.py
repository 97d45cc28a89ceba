"""The protocols of the kinds: what the engine asks of a task, a backbone, a data source and so on.

A component is a plain class. Its constructor takes options only (values that TOML can write) and does
nothing heavy; the engine calls the methods below when it needs them. Any component may implement hooks
too; `state_dict`/`load_state_dict` if it has state that a resumed run needs; and `check()`, called before
any data is read, to raise RecipeError for options that no annotation can judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from datasets import Dataset
    from torch import Tensor, nn

    from sft_engine.flow import Batch, LossTerm, Run

KINDS = {
    "backbone": "the pretrained model and its preprocessing",
    "task": "targets, loss, predictions and metrics",
    "data": "where examples come from",
    "optimizer": "turns gradients into steps",
    "schedule": "learning rate over the run",
    "freezing": "which layer groups train when",
    "regularizer": "what holds the weights or the function back",
    "augmentation": "changes training examples or batches",
    "probe": "views of the evaluation data that test robustness",
    "explanation": "says which parts of an input an answer is owed to",
    "tracker": "passes records on",
    "extension": "anything else that listens to hooks",
    "weights": "a function that returns the local folder of pretrained weights",
}
SINGLE_KINDS = ("task", "data", "backbone", "optimizer", "schedule", "freezing", "explanation")
"""Kinds of which a recipe has at most one: `[kind]`; of all others it has a list: `[[kind]]`."""

Example = dict[str, Any]
"""One encoded example: model inputs by name, arrays or numbers, and the target columns of the task."""

Resolve = Callable[[str], str]
"""Turns a name of weights into a local folder, or returns it unchanged (a hub id)."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a component needs from the loop, declared as class attribute `capabilities`.

    Args:
        unused_parameters: Some trainable parameters may get no gradient in a step.
        second_forward: Runs the model more than once for a micro-batch.
        changes_labels: Targets after `sft_batch` may be soft (class probabilities).
        deterministic: Gives the same result for the same position of the run.
        rolls_back: May answer `sft_step_verdict` with "roll back".
        replayable: Its hooks that get a batch or outputs read neither inputs nor hidden states, and
            change no frozen weight, so that replay may stand in for the frozen part of the model.
    """

    unused_parameters: bool = False
    second_forward: bool = False
    changes_labels: bool = False
    deterministic: bool = True
    rolls_back: bool = False
    replayable: bool = False


@dataclass(frozen=True)
class Head:
    """What the task needs at the end of the model.

    Args:
        kind: Decides the shape and the loss: one class of many, any of many labels, or real values.
        outputs: Width of the last layer.
        names: Class or target names by position.
    """

    kind: Literal["classification", "multi-label", "regression"]
    outputs: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class LayerGroup:
    """A part of the model in forward order, the unit of freezing and of layer-wise learning rates.

    Args:
        name: Such as `embeddings`, `block.3`, `head`.
        parameters: Full parameter names; every parameter of the model is in exactly one group.
    """

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Explained:
    """Which parts of one input one output of the model is owed to.

    Args:
        method: Name of the explanation.
        output: Name of the output: a class, a label or a number.
        parts: Words in their order, columns, or cells of a picture row by row.
        scores: One number a part; above 0 speaks for the output, below 0 against it.
        value: The output for this input, in the units of the scores.
        baseline: The same for the input that says nothing; None where a method has none.
        gap: Sum of the scores less `value - baseline`; None where a method promises no such sum.
        shape: Rows and columns of the cells of a picture; None for anything else.
        spans: Input role, begin and end of each word in its text; empty where that is not known.
        heat_map: The picture with its scores, as a `data:` URI; empty for anything else.
    """

    method: str
    output: str
    parts: tuple[str, ...]
    scores: tuple[float, ...]
    value: float
    baseline: float | None = None
    gap: float | None = None
    shape: tuple[int, int] | None = None
    spans: tuple[tuple[str, int, int], ...] = ()
    heat_map: str = ""

    def record(self) -> dict[str, Any]:
        """Return it as JSON values; what it does not have is left out, and what is no number is None."""
        found: dict[str, Any] = {
            "method": self.method,
            "output": self.output,
            "parts": list(self.parts),
            "scores": [_finite(score) for score in self.scores],
            "value": _finite(self.value),
        }
        if self.baseline is not None and self.gap is not None:
            found |= {"baseline": _finite(self.baseline), "gap": _finite(self.gap)}
        if self.shape is not None:
            found["shape"] = list(self.shape)
        if self.spans:
            found["spans"] = [list(span) for span in self.spans]
        return found | ({"heat_map": self.heat_map} if self.heat_map else {})


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


class Examples(Protocol):
    """Encoded examples that can be fetched whole.

    An implementation may add `take(ids) -> dict[str, Tensor]`, which returns the collated tensors of a
    micro-batch (inputs and targets) directly; `lengths`, an integer array used for buckets; and for the
    preflight `truncated` and `supervised`, arrays of flags, and `unknown_share`, of its tokens.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, ids: Sequence[int]) -> list[Example]: ...


class DataSource(Protocol):
    """Kind `data`: reads raw splits."""

    def load(self) -> dict[str, Dataset]:
        """Return raw splits by name. Raises DataError with the file and what is wrong with it."""
        ...


class Task(Protocol):
    """Kind `task`: what is learned, independent of the backbone.

    An implementation may add `strata(rows) -> array or None`, a class code for each raw row, so that
    splits and subsets keep the shares of the classes; and `found_names(rows, split) -> tuple of str`,
    the label names of raw training rows, so that several streams can share one head; and `tables`, a
    set of input roles that are made of several columns of numbers (a list of floats in every row).

    Attributes:
        inputs: Roles of input columns, `{"text": True, "text_pair": False}`; True means required.
        target: Role of the target column.
    """

    inputs: Mapping[str, bool]
    target: str

    def prepare(
        self, splits: dict[str, Dataset], label_names: tuple[str, ...]
    ) -> dict[str, Dataset]:
        """Turn the target column of every split into what `targets` collates; learn the label names.

        Raises DataError for a target that training does not know, naming split, row and value.
        """
        ...

    @property
    def head(self) -> Head:
        """What the model must end in; known after `prepare`."""
        ...

    def targets(self, examples: list[Example], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Collate targets; `inputs` are the collated inputs, for tasks that align with tokens."""
        ...

    def units(self, batch: Batch) -> dict[str, float]:
        """Count what the loss terms are divided by: always `item`, `token` where targets are tokens."""
        ...

    def loss(self, outputs: Any, batch: Batch) -> LossTerm:
        """Return the task's own loss as a sum over its units, in float32 or better."""
        ...

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return what evaluation keeps of each example: first dimension = examples."""
        ...

    def metrics(self, predictions: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
        """Compute metrics over all examples of a split, in the order of the split.

        Returns scalars by name, per-class scalars as `NAME/CLASS`, and nested lists such as
        `confusion_matrix`. Empty `names` means the task's own choice.
        """
        ...

    @property
    def main_metric(self) -> str:
        """The metric that selects the best weights when the recipe does not say."""
        ...

    def records(self, predictions: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return predictions as JSON records, one an example: label names, probabilities."""
        ...


class Backbone(Protocol):
    """Kind `backbone`: a pretrained model with its preprocessing.

    The engine calls `open` first, then `encode` for each split, training first, then `build`. An
    implementation may add `accepts`, a frozenset of the input roles that it takes; a recipe whose task
    needs another one is refused.

    For `sft-engine export` an implementation may add: `export_formats`, a class attribute, the names of
    the formats that `save` writes, such as `("hf",)`; `load_exported(folder, format) -> nn.Module or
    None`, which reads such a folder by the library alone, so that `forward` can run what a stranger
    would get (None if the library cannot read all of it); and `preprocessing() -> dict`, JSON values that
    say what happens to an example before the model sees it.

    For explanations of texts it may add: `word_spans(rows, task)`, for each row and each token of its
    encoded example the word that the token is of, `(role, begin, end)` in characters, or None for a token
    that stands for no text; None instead of all that if the tokenizer does not know. And `fillers`, ids of
    tokens that say nothing, by name: `mask`, `pad`.
    """

    def open(self, resolve: Resolve) -> None:
        """Load what is light: tokenizer, image settings, model configuration."""
        ...

    def encode(self, rows: Dataset, task: Task) -> Examples:
        """Encode a split once and whole, cached by fingerprint where that is costly."""
        ...

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Encode rows on the fly: augmented, corrupted, or given to `predict`."""
        ...

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Pad and stack the model inputs of examples."""
        ...

    def build(self, task: Task) -> nn.Module:
        """Load the pretrained weights and end them in `task.head`. The engine has set the seed."""
        ...

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model. Usually `model(**inputs)`."""
        ...

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Name the layer groups, input first and head last; every parameter exactly once."""
        ...

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write weights and preprocessing so that the library of the backbone reads them.

        `open(lambda name: folder)` followed by `build(task)` must give the same model again.
        """
        ...


class OptimizerFactory(Protocol):
    """Kind `optimizer`: builds a torch optimizer."""

    lr: float
    weight_decay: float

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build the optimizer over torch parameter groups that carry `lr` and `weight_decay`."""
        ...


class Explanation(Protocol):
    """Kind `explanation`: attributes an output of the model to the parts of its input."""

    def prepare(self, run: Run) -> None:
        """Raise RecipeError, saying why, if it cannot explain this run's model; called once it is built."""
        ...

    def explain(
        self, run: Run, rows: list[dict[str, Any]], outputs: Sequence[int]
    ) -> list[Explained]:
        """Explain one output for each row.

        Args:
            run: Its model is put in evaluation mode and left there; gradients of weights are left alone.
            rows: Inputs by role; images may be decoded.
            outputs: Of each row, which output of the head.
        """
        ...


class Schedule(Protocol):
    """Kind `schedule`: the learning rate as a function of position.

    An implementation may add `momentum(step, total) -> float`, the momentum (or beta1) of that step.
    """

    def factor(self, step: int, total: int) -> float:
        """Return the learning rate of the step with this index (0 .. total - 1) as a share of `lr`.

        Both count within the current phase.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """A component with state that a resumed run needs; tensors and JSON values, nested freely."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state back."""
        ...


RowTransform = Callable[["dict[str, Any]", "np.random.Generator"], "dict[str, Any]"]
"""Changes a raw row; draws only from the generator it is given, which depends on seed, epoch, id."""


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of what a model returned: the tensor itself, or its `logits`.

    Raises:
        TypeError: the model returned neither.
    """
    logits = getattr(outputs, "logits", outputs)
    if not hasattr(logits, "ndim"):
        raise TypeError(f"the model returned {type(outputs).__name__}, which has no logits")
    return logits  # type: ignore[no-any-return]
