"""Evaluation: one loop over (view, batch); every example exactly once, whatever the number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine.feed import evaluation_batches, fetch
from sft_engine.flow import View

if TYPE_CHECKING:
    from sft_engine.devices import Precision
    from sft_engine.flow import Batch, Run, Split

PLAIN = View()


@dataclass(frozen=True)
class Evaluated:
    """What one view of one split gave.

    Args:
        view: The view.
        values: Metrics by name; scalars, and nested lists such as `confusion_matrix`.
        predictions: What the task keeps of each example, in the order of the split.
        seconds: How long it took.
    """

    view: View
    values: dict[str, Any]
    predictions: Mapping[str, torch.Tensor]
    seconds: float

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
) -> list[Evaluated]:
    """Evaluate a split in the plain view and in those that components offer.

    Args:
        run: The run; its model is put in evaluation mode and left there.
        split_name: Which split.
        precision: Autocast.
        batch_size: Examples of a forward pass of one rank.
        metrics: Names of metrics; empty for the task's own choice.
        only_plain: Do not ask components for views.

    Returns:
        One result a view, equal on all ranks; the first is the plain view.
    """
    views = [PLAIN]
    run.evaluating = split_name
    if run.hooks.sft_eval_views is not None and not only_plain:
        for more in run.hooks.sft_eval_views(run=run, split=split_name):
            views.extend(more)
    run.model.eval()
    results = []
    for view in views:
        result = _evaluate_view(run, run.splits[split_name], view, precision, batch_size, metrics)
        _publish(run, split_name, result)
        results.append(result)
    run.evaluating = ""
    return results


def _evaluate_view(
    run: Run,
    split: Split,
    view: View,
    precision: Precision,
    batch_size: int,
    metrics: tuple[str, ...],
) -> Evaluated:
    began = time.perf_counter()
    kept: dict[str, list[torch.Tensor]] = {}
    ids: list[int] = []
    model = view.model or _forward_model(run, precision)
    if view.model is not None:
        view.model.eval()
    for batch in _batches(run, split, view, batch_size, precision):
        batch.to(run.device)
        if view.perturb is not None:
            view.perturb(run, batch)
        with torch.no_grad(), precision.autocast():
            outputs = run.backbone.forward(model, batch.inputs)
            if not batch.real:
                continue
            for name, tensor in run.task.predictions(outputs, batch).items():
                kept.setdefault(name, []).append(tensor.detach().cpu())
            if run.hooks.sft_eval_batch is not None:
                run.hooks.sft_eval_batch(run=run, view=view, batch=batch, outputs=outputs)
        ids += batch.ids
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    predictions = _in_split_order(_gather(run, ids, joined))
    values = run.task.metrics(predictions, metrics)
    return Evaluated(view, values, predictions, time.perf_counter() - began)


def _forward_model(run: Run, precision: Precision) -> torch.nn.Module:
    """Return what to run: DDP's wrapper expects equally many batches on every rank, so not that."""
    if run.accelerator.num_processes == 1 or precision.sharded:
        return run.wrapped
    return run.model


def _batches(
    run: Run, split: Split, view: View, batch_size: int, precision: Precision
) -> Iterator[Batch]:
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    count = 0
    for batch in evaluation_batches(
        split, run.task, run.backbone, view, batch_size, rank=rank, world=world
    ):
        count += 1
        yield batch
    # Sharded weights are gathered in every forward pass: all ranks must make equally many.
    rounds = math.ceil(math.ceil(len(split) / batch_size) / world)
    if precision.sharded and count < rounds:
        stand_in = fetch(split, run.task, run.backbone, [0], (0,), [])
        stand_in.real = False
        yield stand_in


def _gather(
    run: Run, ids: list[int], predictions: dict[str, torch.Tensor]
) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    if run.accelerator.num_processes == 1:
        return [(ids, predictions)]
    from accelerate.utils import gather_object

    return list(gather_object([(ids, predictions)]))


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
        run.hooks.sft_metrics(run=run, view=result.view, values=scalars)
        result.values.update(scalars)
    prefix = f"{split_name}/{result.view.name}/" if result.view.name else f"{split_name}/"
    run.metrics.update({prefix + name: float(value) for name, value in scalars.items()})
    run.record(
        {
            "kind": "evaluation",
            "split": split_name,
            "view": result.view.name,
            "step": run.clock.step,
            "epoch": run.clock.step / max(run.clock.steps_per_epoch, 1),
            "seconds": round(result.seconds, 3),
            "examples": len(run.splits[split_name]),
            **result.values,
        }
    )
