"""Model soups: the mean of the weights of several finished runs, as pure functions.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time", section 2 and recipe 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PATTERN = "*.safetensors"


# --- The mean --------------------------------------------------------------------------------------


@torch.no_grad()
def mean_of_copies(members: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape and type; its bits do not depend on their order.

    Equal tensors give that tensor, bit for bit. It is computed in float64 as the least value plus the mean
    distance to it. Of what is no floating point, such as a counter of batches, the largest is taken.
    """
    stacked = torch.stack(list(members))
    if not stacked.is_floating_point():
        return stacked.amax(dim=0)
    rising = stacked.double().sort(dim=0).values
    least = rising[0]
    mean = least + (rising - least).sum(dim=0) / len(rising)
    equal = least == rising[-1]  # the copy itself: -0.0 stays -0.0
    return torch.where(equal, stacked[0], mean.to(stacked.dtype))


def average_files(members: Sequence[Path], target: Path) -> None:
    """Write the mean of the safetensors files of several folders, tensor by tensor.

    In memory are the tensors of one file of the result, and one tensor of each member. What is in which
    file is as in the first folder.

    Args:
        members: Folders with files of the same tensors.
        target: Folder that gets the files; other files are not looked at.
    """
    with ExitStack() as stack:
        sources = [_tensors_of(folder, stack) for folder in members]
        for path in sorted(members[0].glob(PATTERN)):
            with safe_open(path, "pt") as file:
                names, metadata = list(file.keys()), file.metadata()
            tensors = {
                name: mean_of_copies([s[name].get_tensor(name) for s in sources]) for name in names
            }
            save_file(tensors, target / path.name, metadata)


def _tensors_of(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Return the open file that holds each tensor, by its name."""
    files = [stack.enter_context(safe_open(p, "pt")) for p in sorted(folder.glob(PATTERN))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping


def shapes_of(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of each tensor in a folder's safetensors files; reads headers alone."""
    found = {}
    with ExitStack() as stack:
        for name, file in _tensors_of(folder, stack).items():
            part = file.get_slice(name)
            found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
    return found


# --- Greedy ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A step of the greedy recipe.

    Args:
        member: Index of the member that was tried.
        value: What the soup with it reaches.
        kept: Whether it stays.
    """

    member: int
    value: float
    kept: bool


def by_value(values: Sequence[float], direction: str) -> list[int]:
    """Return indices, best value first; equals in their order, NaN last."""
    sign = -1.0 if direction == "max" else 1.0

    def rank(index: int) -> tuple[bool, float]:
        value = values[index]
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value

    return sorted(range(len(values)), key=rank)


def greedy(
    values: Sequence[float], measure: Callable[[Sequence[int]], float], direction: str
) -> Iterator[Step]:
    """Yield the steps of the greedy soup: one more member each, kept unless the measure falls.

    The soup of all members that were kept is never worse than the best member. Recipe 1 of the paper.

    Args:
        values: Of each member alone.
        measure: Gives the value of a soup of these members.
        direction: `max` or `min`: which way is better.
    """
    first, *others = by_value(values, direction)
    best, soup = values[first], [first]
    yield Step(first, best, kept=True)
    for member in others:
        value = measure([*soup, member])
        kept = value >= best if direction == "max" else value <= best  # NaN is neither
        if kept:
            best, soup = value, [*soup, member]
        yield Step(member, value, kept)


# --- What must be alike ----------------------------------------------------------------------------


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the first key, in order, that two mappings do not agree on; empty if there is none."""
    absent = object()
    keys = sorted(one.keys() | other.keys())
    return next((k for k in keys if one.get(k, absent) != other.get(k, absent)), "")
