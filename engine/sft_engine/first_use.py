"""When a forward pass first uses each parameter, read from the autograd graph.

One forward pass on a small example tells in what order the parameters of any architecture are used
(registration order differs from it: a vision transformer registers its class token before its first
layer) and which ones no gradient can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sft_engine.components import logits_of

Forward = Callable[[nn.Module], Any]
"""Runs a model on a small example."""


@contextmanager
def probing(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Let every parameter take part in the graph; put modes, flags and random state back after.

    Args:
        model: To be run inside the context.
        training: In training mode, else in evaluation mode, which leaves batch norm's statistics alone.
    """
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

    Args:
        model: On any device, the meta device included.
        forward: Runs it; what it returns is, or has, logits.
    """
    with probing(model, training=False):
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
