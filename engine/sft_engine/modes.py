"""Which modules are in training mode: none of the frozen part, so that it gives the same each time.

`requires_grad` alone freezes weights. Batch norm would still move its statistics, and dropout would
make another input of every example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


def set_training_modes(model: nn.Module) -> None:
    """Put what trains into training mode and what is frozen into evaluation mode.

    A module whose parameters are all frozen, and that has any, goes to evaluation mode with all that is
    in it. A module without parameters, such as dropout, has no state of its own to say what it belongs
    to: it goes with the next module in the order of registration that holds parameters. So the dropout
    between frozen embeddings and frozen blocks is quiet, the dropout of a trainable head is not.

    Args:
        model: Its modules' `training` flags are set; nothing else is touched.
    """
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    next_is_frozen = False  # behind the last parameters comes nothing that is frozen
    for module in reversed(list(model.modules())):
        parameters = list(module.parameters())
        frozen = _all_frozen(parameters) if parameters else next_is_frozen
        if frozen:
            module.eval()
        own = list(module.parameters(recurse=False))
        if own:
            next_is_frozen = _all_frozen(own)


def _all_frozen(parameters: Iterable[nn.Parameter]) -> bool:
    return not any(parameter.requires_grad for parameter in parameters)
