"""Evaluation: one loop over (view, batch); every example exactly once, whatever the number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine import ranks, sharding
from sft_engine.devices import is_out_of_memory, release_memory
from sft_engine.feed import evaluation_batches, fetch
from sft_engine.flow import View

if TYPE_CHECKING:
    from sft_engine.devices import Precision
    from sft_engine.flow import Batch, Run, Split

    Tensors = dict[str, torch.Tensor]

PLAIN = View()


@dataclass(frozen=True)
class Evaluated:
    """What one view of one split gave.

    Args:
        view: The view.
        values: Metrics by name; scalars, and nested lists such as `confusion_matrix`.
        predictions: What the task keeps of each example that the view looks at, in the order of the split.
        seconds: How long it took.
        batch_size: Examples of a forward pass; fewer than asked for if memory did not suffice.
    """

    view: View
    values: dict[str, Any]
    predictions: Mapping[str, torch.Tensor]
    seconds: float
    batch_size: int

    @property
    def scalars(self) -> dict[str, float]:
        """The metrics that are numbers."""
        return {name: v for name, v in self.values.items() if isinstance(v, (int, float))}


def evaluate(
    run: Run,
    split_name: str,
    precision: Precision,
    *,
    batch_size: int,
    metrics: tuple[str, ...] = (),
    only_plain: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[Evaluated]:
    """Evaluate a split in the plain view and in those that components offer.

    Args:
        run: The run; its model is put in evaluation mode and left there.
        split_name: Which split.
        precision: Autocast.
        batch_size: Examples of a forward pass of one rank.
        metrics: Names of metrics; empty for the task's own choice.
        only_plain: Do not ask components for views.
        check: Called before each batch; may raise to leave.

    Returns:
        One result a view, equal on all ranks; the first is the plain view.

    Raises:
        OutOfMemoryError: the memory does not suffice for one example. Before that, batches are halved.
    """
    views = [PLAIN]
    run.evaluating = split_name
    if run.hooks.sft_eval_views is not None and not only_plain:
        for more in run.hooks.sft_eval_views(run=run, split=split_name):
            views.extend(more)
    run.model.eval()
    sharding.share_buffers(run)
    results = []
    for view in views:
        stream = _predicted(run, run.splits[split_name], view, precision, batch_size, check)
        result = _evaluate_view(run, view, stream, metrics, batch_size)
        batch_size = result.batch_size
        _publish(run, split_name, result)
        results.append(result)
    run.evaluating = ""
    return results


def predict_split(
    run: Run, split_name: str, precision: Precision, *, batch_size: int
) -> Mapping[str, torch.Tensor]:
    """Return what the task keeps of a split in the plain view; no component takes notice, nothing is recorded.

    Args:
        run: The run; its model is put in evaluation mode and left there.
        split_name: Which split.
        precision: Autocast.
        batch_size: Examples of a forward pass of one rank.

    Returns:
        Tensors in the order of the split, equal on all ranks.
    """
    run.evaluating = split_name
    run.model.eval()
    sharding.share_buffers(run)
    split = run.splits[split_name]
    stream = _predicted(run, split, PLAIN, precision, batch_size, lambda: None, notify=False)
    predictions, _ = _collected(run, stream)
    run.evaluating = ""
    return predictions


def _evaluate_view(
    run: Run,
    view: View,
    stream: Iterator[tuple[list[int], Tensors, int]],
    metrics: tuple[str, ...],
    batch_size: int,
) -> Evaluated:
    began = time.perf_counter()
    predictions, size = _collected(run, stream)
    values = run.task.metrics(predictions, metrics)
    return Evaluated(view, values, predictions, time.perf_counter() - began, size or batch_size)


def _collected(run: Run, stream: Iterator[tuple[list[int], Tensors, int]]) -> tuple[Tensors, int]:
    """Return the predictions of all ranks in the order of the split, and the last batch size (0: no batch)."""
    size = 0
    kept: dict[str, list[torch.Tensor]] = {}
    ids: list[int] = []
    for batch_ids, tensors, size in stream:  # noqa: B007 (the last one counts)
        ids += batch_ids
        for name, tensor in tensors.items():
            kept.setdefault(name, []).append(tensor)
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    return _in_split_order(ranks.everyones(run.accelerator, (ids, joined))), size


def _predicted(
    run: Run,
    split: Split,
    view: View,
    precision: Precision,
    batch_size: int,
    check: Callable[[], None],
    *,
    notify: bool = True,
) -> Iterator[tuple[list[int], Tensors, int]]:
    """Yield ids, predictions and batch size; where memory does not suffice, halve the batches."""
    done, size = 0, batch_size
    while True:
        try:
            for batch in _batches(run, split, view, size, precision, done):
                check()
                tensors = _forward(run, view, batch, precision, notify=notify)
                if batch.real:
                    done += len(batch.ids)
                    yield batch.ids, tensors, size
        except RuntimeError as error:
            # Other ranks would wait for this one: they make equally many forward passes.
            if not is_out_of_memory(error) or size == 1 or run.accelerator.num_processes > 1:
                raise
        else:
            return
        # Outside the except clause, so that the traceback no longer holds the activations.
        release_memory(run.device)
        size = -(-size // 2)
        message = f"out of memory: evaluation batches now have {size} examples"
        run.record({"kind": "notice", "step": run.clock.step, "message": message})


def _forward(
    run: Run, view: View, batch: Batch, precision: Precision, *, notify: bool = True
) -> Tensors:
    """Run the model of a view on a batch; return what the task keeps, in host memory."""
    model = view.model or _forward_model(run, precision)
    if view.model is not None:
        view.model.eval()
    batch.to(run.device)
    serving = nullcontext() if run.replay is None else run.replay.serving(batch, view)
    if view.perturb is not None:
        view.perturb(run, batch)
    with serving, torch.no_grad(), precision.autocast():
        outputs = run.backbone.forward(model, batch.inputs)
        if not batch.real:
            return {}
        tensors = run.task.predictions(outputs, batch)
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        if notify and run.hooks.sft_eval_batch is not None:
            run.hooks.sft_eval_batch(run=run, view=view, batch=batch, outputs=outputs)
    return kept


def _forward_model(run: Run, precision: Precision) -> torch.nn.Module:
    """Return what to run: DDP's wrapper expects equally many batches on every rank, so not that."""
    if run.accelerator.num_processes == 1 or precision.sharded:
        return run.wrapped
    return run.model


def _batches(
    run: Run, split: Split, view: View, batch_size: int, precision: Precision, done: int
) -> Iterator[Batch]:
    """Yield this rank's share, without the `done` first examples; over all ranks each exactly once."""
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    count = len(view.examples(split))
    starts = range(done + rank * batch_size, count, world * batch_size)
    yield from evaluation_batches(split, run.task, run.backbone, view, batch_size, starts)
    # Sharded weights are gathered in every forward pass: all ranks must make equally many.
    rounds = math.ceil(math.ceil(count / batch_size) / world)
    if precision.sharded and len(starts) < rounds:
        stand_in = fetch(split, run.task, run.backbone, [0], (0,), [])
        stand_in.real = False
        yield stand_in


def _in_split_order(
    parts: list[tuple[list[int], dict[str, torch.Tensor]]],
) -> dict[str, torch.Tensor]:
    filled = [part for part in parts if part[0]]
    ids = np.concatenate([np.asarray(part[0]) for part in filled])
    order = torch.from_numpy(np.argsort(ids, kind="stable"))
    names = filled[0][1]
    return {name: torch.cat([part[1][name] for part in filled])[order] for name in names}


def _publish(run: Run, split_name: str, result: Evaluated) -> None:
    """Let components see and extend the metrics, then record them."""
    scalars = result.scalars
    if run.hooks.sft_metrics is not None:
        run.hooks.sft_metrics(
            run=run, view=result.view, values=scalars, predictions=result.predictions
        )
        # What is decided by these values must be decided equally.
        scalars = ranks.from_main(run.accelerator, scalars)
        result.values.update(scalars)
    prefix = f"{split_name}/{result.view.name}/" if result.view.name else f"{split_name}/"
    run.metrics.update({prefix + name: float(value) for name, value in scalars.items()})
    run.record(
        {
            "kind": "evaluation",
            "split": split_name,
            "view": result.view.name,
            "step": run.clock.step,
            **run.phase_note,
            "epoch": run.clock.epochs,
            "seconds": round(result.seconds, 3),
            "examples": len(result.view.examples(run.splits[split_name])),
            **result.values,
        }
    )
