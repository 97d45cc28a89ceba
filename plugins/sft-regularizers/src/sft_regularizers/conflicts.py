"""What a recipe cannot have together, said before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft_engine import Problem

AGAIN = ("sam", "asam", "fgm")
"""Compute the gradients of a window a second time; the later would undo the earlier."""

RESULT = ("ema", "swa", "lawa", "wise-ft")
"""Replace the last weights at the end of training."""

AT_ONCE = ("freelb", "neftune", "lwf", "bss", "delta", "mixout")
"""Listen or change something inside the model, which a compiled model does not notice."""

PULLING = ("l2-sp", "l2-sp-fisher")

Uses = list[tuple[int, str, Mapping[str, Any]]]


def conflicts(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what does not go together.

    Args:
        tables: Of the recipe.
    """
    uses = [(i, str(t.get("use")), t) for i, t in enumerate(tables.get("regularizer", ()))]
    again = [(i, use, t) for i, use, t in uses if use in AGAIN]
    yield from _one_of(again, "both compute the gradients of a window again")
    results = [
        (i, use, t) for i, use, t in uses if use in RESULT and t.get("final", True) is not False
    ]
    yield from _one_of(results, "both replace the weights at the end", "set `final = false` of one")
    yield from _best(results, tables.get("checkpoint", {}))
    yield from _parts(uses, tables.get("train", {}))
    yield from _decay(uses, tables.get("optimizer", {}))
    yield from _smoothing(uses, tables.get("task", {}))
    if tables.get("train", {}).get("compile"):
        for index, use, _ in uses:
            if use in AT_ONCE:
                yield Problem(
                    f"regularizer[{index}]",
                    f"{use} works inside the model, which a compiled one does not notice",
                    "leave out `train.compile`",
                )


def _one_of(uses: Uses, why: str, hint: str = "leave one out") -> Iterator[Problem]:
    for index, use, _ in uses[1:]:
        yield Problem(f"regularizer[{index}]", f"{use} beside {uses[0][1]}: {why}", hint)


def _best(results: Uses, checkpoint: Mapping[str, Any]) -> Iterator[Problem]:
    """The best checkpoint would be loaded over what a component has put in place."""
    best = checkpoint.get("best", "auto")
    if best == "last":
        return
    for index, use, _ in results[:1]:
        yield Problem(
            f"regularizer[{index}]",
            f'{use} replaces the last weights, and `checkpoint.best = "{best}"` would put others in place',
            'set `checkpoint.best = "last"`'
            + ("" if use == "wise-ft" else f", or `final = false` of {use} to evaluate it only"),
        )


def _parts(uses: Uses, train: Mapping[str, Any]) -> Iterator[Problem]:
    """BSS is about a whole batch."""
    micro, batch = train.get("micro_batch_size", 0), train.get("batch_size", 0)
    if not micro or (batch and micro >= batch):
        return
    for index, use, table in uses:
        if use == "bss" and not table.get("per_micro_batch") and table.get("strength") != 0:
            yield Problem(
                f"regularizer[{index}]",
                f"bss looks at a batch as one matrix, and `train.micro_batch_size` = {micro} cuts it",
                "leave that out, or set `per_micro_batch = true`",
            )


def _decay(uses: Uses, optimizer: Mapping[str, Any]) -> Iterator[Problem]:
    """Weight decay pulls to zero what L2-SP pulls to the start."""
    decay = optimizer.get("weight_decay", 0)
    for index, use, table in uses:
        idle = table.get("alpha") == 0 and table.get("beta") == 0
        if (
            use in PULLING
            and decay
            and not idle
            and table.get("weight_decay", "refuse") == "refuse"
        ):
            yield Problem(
                "optimizer.weight_decay",
                f"found {decay:g}, which pulls to zero the weights that {use} pulls elsewhere",
                f'set it to 0, or `weight_decay` of regularizer[{index}] to "off" or "keep"',
            )


def _smoothing(uses: Uses, task: Mapping[str, Any]) -> Iterator[Problem]:
    """Targets are smoothed once: by one component, or by the task."""
    smoothing = [(i, use, t) for i, use, t in uses if use == "label-smoothing"]
    yield from _one_of(smoothing, "both smooth the targets")
    if smoothing and task.get("label_smoothing"):
        yield Problem(
            f"regularizer[{smoothing[0][0]}]",
            f"label-smoothing beside `task.label_smoothing` = {task['label_smoothing']:g}: both smooth the "
            "targets",
            "leave one out",
        )
