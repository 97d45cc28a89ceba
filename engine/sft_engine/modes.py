"""Which modules are in training mode: none of the frozen part, so that it gives the same each time.

`requires_grad` alone freezes weights. Batch norm would still move its statistics, and dropout would
make another input of every example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    modules = list(model.modules())
    trains = _trains(model)
    quiet, next_is_frozen = set(), False  # behind the last parameters comes nothing that is frozen
    for module in reversed(modules):
        if trains[module] is False or (trains[module] is None and next_is_frozen):
            quiet.add(module)
        own = [p.requires_grad for p in module.parameters(recurse=False)]
        if own:
            next_is_frozen = not any(own)
    for module in modules:
        # `eval` of a frozen module has done it for all that is in it.
        if module.training and module in quiet:
            module.eval()


def _trains(model: nn.Module) -> dict[nn.Module, bool | None]:
    """Say of each module of a model whether any parameter in it trains; None if there is none in it."""
    found: dict[nn.Module, bool | None] = {}

    def visit(module: nn.Module) -> bool | None:
        if module not in found:
            found[module] = None  # against a module that holds itself
            inside: list[bool | None] = [p.requires_grad for p in module.parameters(recurse=False)]
            inside += [visit(child) for child in module.children()]
            known = [each for each in inside if each is not None]
            found[module] = any(known) if known else None
        return found[module]

    visit(model)
    return found
