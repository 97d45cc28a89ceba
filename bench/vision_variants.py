"""One function per way to train the networks of vision.py for one epoch.

Each takes the work, times the training call with `work.timer`, and returns the trained model. The
peers' are those of overhead_variants.py, at the settings a user gets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench import overhead_variants as peers
from bench.overhead_work import OverheadWork
from bench.same_work import MAX_GRAD_NORM, WEIGHT_DECAY
from bench.vision_work import VisionWork

Variant = Callable[[VisionWork], nn.Module]


def as_in_overhead(variant: Callable[[OverheadWork], nn.Module]) -> Variant:
    """A variant of overhead.py, which asks nothing of its work that this one does not have."""
    return lambda work: variant(cast("OverheadWork", work))


def tuned_by_hand(work: VisionWork) -> nn.Module:
    """The hand-written loop with what an expert adds: bf16, channels innermost, fused AdamW."""
    last = torch.channels_last
    model = work.build_model().to(memory_format=last)  # type: ignore[call-overload]
    optimizer = peers.optimizer_of(cast("OverheadWork", work), model, fused=True)
    schedule = peers.linear_decay(optimizer, work.steps)
    loader = peers.loader_of(cast("OverheadWork", work))
    with work.timer:
        for inputs, labels in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model(inputs.contiguous(memory_format=last)), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


def timm_loop(work: VisionWork) -> nn.Module:
    """`train_one_epoch` of timm's train script, from the parts that are in its package.

    The script itself is not: it comes with the repository. Its learning rate is set before each step, and
    its meters are read at the end alone, as with a long `--log-interval`.
    """
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, dispatch_clip_grad

    model = work.build_model()
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=work.learning_rate, weight_decay=WEIGHT_DECAY
    )
    loader = peers.loader_of(cast("OverheadWork", work))
    losses = AverageMeter()
    with work.timer:
        model.train()
        optimizer.zero_grad()
        for step, (inputs, labels) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = work.learning_rate * (1 - step / work.steps)
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            dispatch_clip_grad(model.parameters(), value=MAX_GRAD_NORM, mode="norm")
            optimizer.step()
            optimizer.zero_grad()
        losses.update(loss.item(), len(inputs))
    return model


def ours(work: VisionWork, **settings: Any) -> nn.Module:
    """Our engine through a recipe; at its defaults unless told otherwise."""
    from bench.ours import vision

    return vision(work, **settings)


VARIANTS: dict[str, Variant] = {
    "ours": ours,
    "ours-fp32": partial(ours, precision="fp32", channels_last=False),
    "ours-bf16": partial(ours, precision="bf16", channels_last=False),
    "ours-bf16-last": partial(ours, precision="bf16", channels_last=True),
    "raw": as_in_overhead(peers.by_hand),
    "raw-bf16-last": tuned_by_hand,
    "timm": timm_loop,
    "lightning": as_in_overhead(peers.lightning),
    "fastai": as_in_overhead(peers.fastai),
}
