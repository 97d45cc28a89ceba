"""Whether a backbone's layer groups hold what they promise, by another way than they are made.

Groups are made from the autograd graph; here, hooks on the modules say who is called first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from sft_engine.components import LayerGroup

_NUMBERED = re.compile(r"(.*?)(\d+)$")


def first_calls(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, int]:
    """Return when the module that owns a parameter is called first, by the parameter's name.

    Parameters are left out if their module is never called (an attention that reads the weights of its
    linear layers) or if it holds other layers too (a class token): when it is called says nothing.
    """
    calls: dict[str, int] = {}
    counter = itertools.count()

    def note(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls.setdefault(path, next(counter))

        return hook

    leaves = {
        path: module
        for path, module in model.named_modules()
        if module._parameters and not any(True for c in module.children() for _ in c.parameters())  # noqa: SLF001
    }
    handles = [m.register_forward_pre_hook(note(path)) for path, m in leaves.items()]
    training = model.training
    try:
        with torch.no_grad():
            run(model.eval())
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    owners = {name: name.rpartition(".")[0] for name, _ in model.named_parameters()}
    return {name: calls[path] for name, path in owners.items() if path in calls}


def check_layer_groups(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    run: Callable[[nn.Module], Any],
    *,
    apart: bool = True,
) -> None:
    """Assert what layer groups promise.

    Every parameter is in exactly one; their names differ; the head is last; they stand in the order in
    which a forward pass first calls them.

    Args:
        model: On any device, the meta device included.
        groups: As the backbone gives them.
        run: Runs the model on a small example.
        apart: No group begins before the one in front has ended, as it is where there are no branches.
    """
    names = [name for name, _ in model.named_parameters()]
    grouped = [name for group in groups for name in group.parameters]
    titles = [group.name for group in groups]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert sorted(grouped) == sorted(names), "a parameter is in no group, or does not exist"
    assert len(set(titles)) == len(titles), f"two groups have one name: {titles}"
    assert titles[-1] == "head", f"the head is not last: {titles}"
    calls = first_calls(model, run)
    assert len(calls) > len(names) / 2, "too few calls seen to tell the order"
    spans = [[calls[name] for name in group.parameters if name in calls] for group in groups]
    seen = [(title, span) for title, span in zip(titles, spans, strict=True) if span]
    for (before, early), (after, late) in itertools.pairwise(seen):
        assert min(early) < min(late), f"{after} is used before {before}"
        assert not apart or max(early) < min(late), f"{before} is still used after {after} begins"


def in_one_line(groups: Sequence[LayerGroup]) -> str:
    """Return the names of groups and, in brackets, of how many parameters: `stem(3) layer1-4(57)`.

    Groups that are numbered through stand together, with the sum of their parameters.
    """
    parts: list[tuple[str, list[int], int]] = []
    for group in groups:
        found = _NUMBERED.fullmatch(group.name)
        stem, numbers = (found[1], [int(found[2])]) if found else (group.name, [])
        count = len(group.parameters)
        if parts and numbers and parts[-1][0] == stem and parts[-1][1]:
            numbers, count = parts[-1][1] + numbers, parts.pop()[2] + count
        parts.append((stem, numbers, count))
    return " ".join(f"{stem}{_range(numbers)}({count})" for stem, numbers, count in parts)


def _range(numbers: list[int]) -> str:
    whole = numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else False
    return f"{numbers[0]}-{numbers[-1]}" if whole and numbers[1:] else ",".join(map(str, numbers))
