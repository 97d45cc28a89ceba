"""When a forward pass first uses each parameter, read from the autograd graph.

One short forward pass answers two questions for any architecture: which parameters no gradient can
reach, and in what order the others are used (registration order differs from it: OPT registers its
final norm before its layers, BART the norm of its embeddings after them).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sft_engine import logits_of

Forward = Callable[[nn.Module], Any]
"""Runs a model on a short example."""

_log = logging.getLogger("sft_transformers")


@contextmanager
def _probing(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Let every parameter take part in the graph; put modes, flags and random state back after."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    try:
        model.train(training)
        for parameter, _ in flags:
            parameter.requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def first_use(model: nn.Module, forward: Forward) -> dict[str, int]:
    """Return the position in the forward pass at which each parameter is first used.

    Positions are sequence numbers of autograd nodes: only their order means something. Parameters
    that the logits do not depend on, or only through an opaque autograd function, are left out.
    """
    with _probing(model, training=False):
        positions: dict[int, int] = {}
        todo = [node for node in [logits_of(forward(model)).grad_fn] if node is not None]
        seen = set(todo)
        while todo:
            node = todo.pop()
            for following, _ in node.next_functions:
                if following is not None and hasattr(following, "variable"):
                    key = id(following.variable)
                    positions[key] = min(positions.get(key, 2**63), node._sequence_nr())  # noqa: SLF001
                elif following is not None and following not in seen:
                    seen.add(following)
                    todo.append(following)
    return {n: positions[id(p)] for n, p in model.named_parameters() if id(p) in positions}


def _trained(model: nn.Module, forward: Forward) -> set[str]:
    """Return the names of parameters that a true backward pass reaches."""
    with _probing(model, training=True):
        try:
            torch.autograd.backward(logits_of(forward(model)).sum())
            return {n for n, p in model.named_parameters() if p.grad is not None}
        finally:
            model.zero_grad(set_to_none=True)


def _role(name: str) -> str:
    """Return the name of a parameter without its numbers: the same in every block and expert."""
    return re.sub(r"\d+", "*", name)


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
    gone = {id(model.get_parameter(name)) for name in unused}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in gone:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
    if unused:
        _log.debug("not trained, because the logits do not depend on them: %s", ", ".join(unused))
    return unused
