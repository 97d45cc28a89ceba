"""How the shape of an activation follows from the shapes of the inputs.

Learned from two probes of different sizes: every dimension is a number of its own, or a multiple of a
dimension of an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.replay.trace import Inputs

Place = tuple[str, int]
"""An input and one of its dimensions."""


@dataclass(frozen=True)
class Dim:
    """One dimension of an activation.

    Args:
        size: How large it is, or how often it holds the dimension of the input.
        place: The dimension of an input that it follows; None if it is always the same.
    """

    size: int
    place: Place | None = None

    @property
    def is_batch(self) -> bool:
        """Whether it counts examples, one by one."""
        return self.place is not None and self.place[1] == 0 and self.size == 1

    def of(self, inputs: Inputs) -> int:
        """Return its size for these inputs."""
        if self.place is None:
            return self.size
        name, position = self.place
        return self.size * inputs[name].shape[position]


def fixed_places(first: Inputs, second: Inputs) -> dict[Place, int]:
    """Return the dimensions of inputs that two probes have in common: they are taken as given."""
    return {
        (name, position): size
        for name, tensor in first.items()
        for position, size in enumerate(tensor.shape)
        if second[name].shape[position] == size
    }


def explain(one: Tensor, other: Tensor, first: Inputs, second: Inputs) -> tuple[Dim, ...] | None:
    """Return the dimensions of an activation, or None if one of them cannot be explained.

    Args:
        one: The activation of the first probe.
        other: The same of the second probe.
        first: The inputs of the first probe.
        second: The inputs of the second probe.
    """
    if one.ndim != other.ndim or one.dtype != other.dtype:
        return None
    places = _varying(first, second)
    dims = [_dim(a, b, places) for a, b in zip(one.shape, other.shape, strict=True)]
    known = [dim for dim in dims if dim is not None]
    return tuple(known) if len(known) == len(dims) else None


def _varying(first: Inputs, second: Inputs) -> dict[Place, tuple[int, int]]:
    """Return the dimensions in which the probes differ, that of the examples first."""
    found = {
        (name, position): (size, second[name].shape[position])
        for name, tensor in first.items()
        for position, size in enumerate(tensor.shape)
        if second[name].shape[position] != size
    }
    return dict(sorted(found.items(), key=lambda item: item[0][1]))


def _dim(a: int, b: int, places: Mapping[Place, tuple[int, int]]) -> Dim | None:
    if a == b:
        return Dim(a)
    for place, (x, y) in places.items():
        if (a, b) == (x, y):
            return Dim(1, place)
    for place, (x, y) in places.items():
        if x and y and a % x == 0 and b % y == 0 and a // x == b // y:
            return Dim(a // x, place)
    return None
