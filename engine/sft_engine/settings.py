"""The engine's own tables of a recipe: `[train]`, `[evaluation]`, `[checkpoint]`, and part of `[data]`.

They are checked by the same machinery as a component's constructor: annotation = schema, default =
default, docstring line = help. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, in what portions and in which precision to train.

    Args:
        epochs: Passes over the training split; a fraction is allowed. Ignored if `steps` is set. In a
            recipe with phases this is the length of each phase that does not say its own.
        steps: Optimizer steps; overrides `epochs`.
        batch_size: Examples of one optimizer step, over all processes together.
        micro_batch_size: Examples of one forward pass in one process; 0 means as many as `batch_size`
            allows. Smaller values save memory and change nothing else (gradient accumulation).
        length_buckets: Group examples of similar length in a window, where lengths are known.
        precision: `auto` takes bf16 where the processor computes in it, else fp32; and fp32 for depthwise
            convolutions on a CPU, which are slower in bf16.
        clip_norm: Largest norm of the whole gradient; 0 switches clipping off.
        decay_all: Apply weight decay to biases and norm weights too.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        compile: Run the model through `torch.compile`.
        device: `auto`, `cpu`, or a device that torch knows, such as `cuda` or `mps`.
        threads: CPU threads of torch in each process; 0 leaves torch's own choice.
        workers: Processes that fetch data in the background; 0 fetches in the main one.
        log_every: Steps between two records in metrics.jsonl.
        deterministic: Ask torch for deterministic algorithms (slower on a GPU).
        replay: Run the frozen part of the model once for each example and keep what it gives: `auto`
            measures whether it pays; true stops the run where it cannot hold.
        replay_dtype: How activations are kept: `exact` as computed, `fp16` or `bf16` in half the bytes.
        replay_memory: Share of the free memory that they may take; what is larger goes to files.
    """

    epochs: Annotated[float, Gt(0)] = 3.0
    steps: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 32
    micro_batch_size: Annotated[int, Ge(0)] = 0
    length_buckets: bool = True
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip_norm: Annotated[float, Ge(0)] = 1.0
    decay_all: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    threads: Annotated[int, Ge(0)] = 0
    workers: Annotated[int, Ge(0)] = 0
    log_every: Annotated[int, Ge(1)] = 10
    deterministic: bool = False
    replay: bool | Literal["auto"] = "auto"
    replay_dtype: Literal["exact", "fp16", "bf16"] = "exact"
    replay_memory: Annotated[float, Ge(0), Le(1)] = 0.25


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """When to look at the validation split, and with what.

    Args:
        every_epochs: Epochs between two evaluations of the validation split; 0 means only at the end.
        every_steps: Steps between two evaluations; overrides `every_epochs` when greater than 0.
        train_sample: Training examples, always the same, that are evaluated beside the validation split,
            so that the gap between the two is of like with like; 0 for none.
        batch_size: Examples of one forward pass; 0 means twice the micro-batch.
        metrics: Names from torchmetrics; empty means the task's own choice.
        test: Evaluate the test split at the end, with the best weights.
        predictions: Write `predictions/SPLIT.jsonl` for the splits evaluated at the end.
        page: Write `report.html` at the end; without it, `sft-engine report` writes it when it is wanted.
    """

    every_epochs: Annotated[float, Ge(0)] = 1.0
    every_steps: Annotated[int, Ge(0)] = 0
    train_sample: Annotated[int, Ge(0)] = 64
    batch_size: Annotated[int, Ge(0)] = 0
    metrics: tuple[str, ...] = ()
    test: bool = True
    predictions: bool = True
    page: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When to save, what to keep, and which weights are the result.

    Args:
        every_epochs: Epochs between two checkpoints; 0 means only when interrupted.
        every_steps: Steps between two checkpoints; overrides `every_epochs` when greater than 0.
        keep: Newest checkpoints kept; older ones are deleted (the best one is kept as well).
        best: Metric of the validation split that selects the final weights, `last` for the last
            ones, `auto` for the task's main metric where there is a validation split.
        direction: Whether more or less of that metric is better; `auto` knows the usual ones.
    """

    every_epochs: Annotated[float, Ge(0)] = 1.0
    every_steps: Annotated[int, Ge(0)] = 0
    keep: Annotated[int, Ge(1)] = 1
    best: str = "auto"
    direction: Literal["auto", "max", "min"] = "auto"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Keys of `[data]` that belong to the engine, the same for every data component.

    Args:
        columns: Role to column, such as `{text = "review", label = "stars"}`; to a list of columns of
            numbers for a role that is a table, such as `{features = ["length", "width"]}`.
        label_names: Class names in the order of their ids; empty means sorted as found in training.
        splits: Name in the source of `train`, `validation` and `test`, where it differs; empty text
            leaves a split out.
        validation: Share (below 1) of all training examples, or their number, to hold out for
            validation where the source has no such split; 0 for none.
        test: The same for the test split; drawn before the validation split.
        split_seed: Seed of those draws alone, so that every run of a study sees the same test split.
        stratify: Keep class shares equal in splits and subsets where the task has classes.
        subset: Share (below 1) or number of training examples to use; 0 for all.
        resample: How training examples are drawn: `none`; `bootstrap` draws as many with
            replacement (seed `subset`); `balanced` draws classes equally often.
        draw: Which examples of the training split, after `subset`, a run of a study sees: `bootstrap` as
            many drawn with replacement, `subsample` a share of them, `fold` all but one fold. Within
            classes if `stratify` is set; depends on `draw_number` and `split_seed`, and on no other seed.
        draw_number: Which draw; with `fold`, which fold is left out.
        draw_share: Share of the examples that `subsample` takes.
        draw_folds: Number of folds.
        on_error: Whether a broken row stops the run or is skipped with a warning.
    """

    columns: dict[str, str | list[str]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)
    validation: Annotated[float, Ge(0)] = 0.1
    test: Annotated[float, Ge(0)] = 0.1
    split_seed: int = 0
    stratify: bool = True
    subset: Annotated[float, Ge(0)] = 0
    resample: Literal["none", "bootstrap", "balanced"] = "none"
    draw: Literal["all", "bootstrap", "subsample", "fold"] = "all"
    draw_number: Annotated[int, Ge(0)] = 0
    draw_share: Annotated[float, Gt(0), Lt(1)] = 0.632
    draw_folds: Annotated[int, Ge(2)] = 4
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Keys of a `[[stream]]` that belong to the engine: training data beside that of `[data]`.

    All other keys are options of the data component. Only the stream's training split is used: its
    validation and test splits are not, and none are held out.

    Args:
        name: How phases call it; its loss terms are logged as `loss/NAME/TERM`.
        batch_size: Its examples of one optimizer step; 0 means `train.batch_size`.
        data: Options of the data component that have the name of one of these keys, such as
            `{name = "imdb"}`.
        columns: As in `[data]`.
        splits: As in `[data]`; only `train` counts.
        stratify: As in `[data]`.
        subset: As in `[data]`.
        resample: As in `[data]`.
        on_error: As in `[data]`.
    """

    name: str
    batch_size: Annotated[int, Ge(0)] = 0
    data: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    stratify: bool = True
    subset: Annotated[float, Ge(0)] = 0
    resample: Literal["none", "bootstrap", "balanced"] = "none"
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """Keys of a `[[phase]]`: a part of the run that is trained in turn.

    Args:
        name: How records and components call it.
        epochs: Passes over `data` if it is among the streams, else over the first of them; a fraction
            is allowed. Without `epochs` and `steps`, those of `[train]` hold.
        steps: Optimizer steps; overrides `epochs`.
        streams: Weight in the objective of each stream that is trained on, by its name; `data` is the
            training split of `[data]`. Empty means `{data = 1.0}`.
        lr: Replaces `optimizer.lr` in this phase; all parameter groups keep their ratio to it.
    """

    name: str
    epochs: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Ge(1)] | None = None
    streams: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    lr: Annotated[float, Ge(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class SeedSettings:
    """The four seeds of a run; each one not given derives from `seed`.

    Args:
        seed: The one number that all others derive from.
        init: Weights of new layers.
        order: Who sees which example when.
        subset: Which training examples are drawn.
        noise: Dropout, augmentation and every other random draw during training.
    """

    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    init: Annotated[int, Ge(0)] | None = None
    order: Annotated[int, Ge(0)] | None = None
    subset: Annotated[int, Ge(0)] | None = None
    noise: Annotated[int, Ge(0)] | None = None
