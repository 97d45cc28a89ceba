"""Parameters that the logits do not depend on become buffers, found by one short forward pass."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import torch
from torch import nn

from sft_engine import logits_of
from sft_engine.first_use import Forward, first_use, probing

__all__ = ["as_buffers", "first_use", "retire_unused"]

_log = logging.getLogger("sft_transformers")


def _trained(model: nn.Module, forward: Forward) -> set[str]:
    """Return the names of parameters that a true backward pass reaches."""
    with probing(model, training=True):
        try:
            torch.autograd.backward(logits_of(forward(model)).sum())
            return {n for n, p in model.named_parameters() if p.grad is not None}
        finally:
            model.zero_grad(set_to_none=True)


def _role(name: str) -> str:
    """Return the name of a parameter without its numbers: the same in every block and expert."""
    return re.sub(r"\d+", "*", name)


def as_buffers(model: nn.Module, names: Iterable[str]) -> None:
    """Turn parameters into buffers of the same names; those that are tied to them too."""
    gone = {id(model.get_parameter(name)) for name in names}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in gone:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def retire_unused(model: nn.Module, forward: Forward) -> list[str]:
    """Turn parameters that the logits do not depend on into buffers, and return their names.

    A parameter that never gets a gradient stops DDP with an error. As a buffer it keeps its name and
    value in `state_dict`, so the saved model is complete, and nobody trains it. An unused parameter
    stays if another one of its role is used: it may belong to an expert not chosen this time.
    """
    used = {_role(name) for name in first_use(model, forward)}
    unused = [n for n, _ in model.named_parameters() if _role(n) not in used]
    if unused:
        # Reformer hides its blocks from the graph: only a backward pass is proof.
        trained = {_role(name) for name in _trained(model, forward)}
        unused = [n for n in unused if _role(n) not in trained]
    as_buffers(model, unused)
    if unused:
        _log.debug("not trained, because the logits do not depend on them: %s", ", ".join(unused))
    return unused
