"""Where a model is cut: the calls that are answered, and the few activations that need an answer kept.

A *unit* is a largest clean call. A *leaf* is one tensor of what a unit returns. A leaf is *live* if
anything that training or evaluation reads depends on it once all units are answered; the dead ones are
answered with NaN, so that a mistake shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree

from sft_engine.replay.stubs import Key, Stub, nothing

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.replay.shapes import Dim, Place
    from sft_engine.replay.trace import Inputs

Name = tuple[Key, int]
"""A unit and the position of a leaf in what it returns."""


@dataclass
class Leaf:
    """A tensor in what a unit returns.

    Args:
        name: The unit, and its position there.
        dims: How its shape follows from the inputs.
        like: An empty tensor of its type and device.
        order: Its dimensions, the slowest in memory first.
        first: Only the first position of the dimension behind the examples is read.
    """

    name: Name
    dims: tuple[Dim, ...]
    like: Tensor
    order: tuple[int, ...]
    first: bool = False

    @property
    def batch(self) -> int:
        """The dimension of the examples; -1 if there is none."""
        return next((i for i, dim in enumerate(self.dims) if dim.is_batch), -1)

    @property
    def padded(self) -> int:
        """The dimension that is padded to the longest example; -1 if there is none."""
        found = [i for i, dim in enumerate(self.dims) if dim.place is not None and dim.place[1] > 0]
        return found[0] if found else -1

    @property
    def place(self) -> Place | None:
        """The dimension of an input that the padded one follows, if all its positions are kept."""
        return self.dims[self.padded].place if self.padded >= 0 and not self.first else None

    @property
    def is_storable(self) -> bool:
        """Whether it can be kept example by example."""
        follow = [dim for dim in self.dims if dim.place is not None]
        batches = sum(dim.is_batch for dim in follow)
        return batches == 1 and len(follow) - batches <= 1 and all(dim.size == 1 for dim in follow)

    def shape(self, inputs: Inputs) -> list[int]:
        """Return its shape for these inputs."""
        return [dim.of(inputs) for dim in self.dims]

    def row_shape(self, inputs: Inputs) -> tuple[int, ...]:
        """Return the shape of what is kept of one example, or of one of its tokens."""
        left_out = {self.batch, self.padded}
        if self.first:
            left_out.add(1)
        return tuple(n for i, n in enumerate(self.shape(inputs)) if i not in left_out)

    # --- to rows and back ------------------------------------------------------------------------

    def rows(self, value: Tensor, valid: Mapping[Place, Tensor]) -> Tensor:
        """Return what is kept: (examples, ...), or (tokens of all examples, ...) without padding."""
        moved = value.detach().movedim(self.batch, 0)
        if self.first:
            return moved[:, 0]
        if self.place is None:
            return moved
        behind = self.padded if self.padded > self.batch else self.padded + 1
        return moved.movedim(behind, 1)[valid[self.place]]

    def value(self, rows: Tensor, inputs: Inputs, valid: Mapping[Place, Tensor]) -> Tensor:
        """Return the activation as the unit would have, from rows that belong to the caller."""
        shape = self.shape(inputs)
        if self.first:
            # The other positions are not read, but must be finite: what trains may run over all of them,
            # and 0 times NaN is no gradient of 0. A view costs nothing.
            return rows.unsqueeze(1).expand(shape)
        if self.place is not None:
            behind = self.padded if self.padded > self.batch else self.padded + 1
            rest = [n for i, n in enumerate(shape) if i not in (self.batch, self.padded)]
            filled = rows.new_zeros([shape[self.batch], shape[self.padded], *rest])
            filled[valid[self.place]] = rows
            rows = filled.movedim(1, behind)
        return laid_out(rows.movedim(0, self.batch), self.order)


def laid_out(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the tensor with its dimensions in this order in memory: kernels depend on it."""
    back = [order.index(i) for i in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(back)


def order_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the dimensions of a tensor, the slowest in memory first."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda i: (-strides[i], i)))


@dataclass
class Unit:
    """A call that is answered.

    Args:
        key: The module's path, and how often it was called before.
        module: The module.
        spec: How what it returns is nested.
        leaves: What it returns: leaves, and constants.
    """

    key: Key
    module: nn.Module
    spec: Any
    leaves: list[Leaf | Any]

    @property
    def tensors(self) -> list[Leaf]:
        """Its leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Leaf)]


@dataclass
class Cut:
    """What is answered, and with what.

    Args:
        units: In the order in which they end.
        live: Names of the leaves that are kept.
        calls: How often each module of a unit is called in a pass.
        fixed: Dimensions of inputs for which the cut was found, and does not hold otherwise.
        stand_ins: Inputs that only units read.
        filled: Dead leaves must take memory.
        obstacle: What ended the clean part though nothing there trains; empty if nothing did.
    """

    units: list[Unit]
    live: list[Name]
    calls: dict[str, int]
    fixed: dict[Place, int]
    stand_ins: tuple[str, ...] = ()
    filled: bool = False
    obstacle: str = ""
    _leaves: dict[Name, Leaf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._leaves = {leaf.name: leaf for unit in self.units for leaf in unit.tensors}

    def on(self, model: nn.Module | None) -> Cut:
        """Return the same cut of another model of the same structure; of none, to be kept."""
        own = {
            name: nn.Identity() if model is None else model.get_submodule(name)
            for name in self.modules
        }
        return replace(self, units=[replace(unit, module=own[unit.key[0]]) for unit in self.units])

    @property
    def kept(self) -> list[Leaf]:
        """The live leaves."""
        return [self._leaves[name] for name in self.live]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of the units by path."""
        return {unit.key[0]: unit.module for unit in self.units}

    @property
    def wanted(self) -> list[Key]:
        """The calls that must be made to get the live leaves."""
        return list(dict.fromkeys(key for key, _ in self.live))

    def fits(self, inputs: Inputs) -> bool:
        """Say whether the cut holds for inputs of these shapes."""
        return all(
            name in inputs and inputs[name].shape[position] == size
            for (name, position), size in self.fixed.items()
        )

    def leaves_of(self, found: Mapping[Key, Any]) -> list[Tensor]:
        """Return the live leaves among what units returned."""
        flat = {key: _pytree.tree_leaves(output) for key, output in found.items()}
        return [flat[key][position] for key, position in self.live]

    def stubs(
        self, inputs: Inputs, values: Mapping[Name, Tensor], dead: Callable[..., Tensor] = nothing
    ) -> list[tuple[nn.Module, Stub]]:
        """Return the stubs for a pass.

        Args:
            inputs: Of the pass; only their shapes count.
            values: The activations, by name of the leaf; all others are dead.
            dead: Makes the stand-in of a dead leaf.
        """
        answers: dict[str, dict[int, Callable[[], Any]]] = {}
        modules = self.modules
        for unit in self.units:
            name, index = unit.key
            answers.setdefault(name, {})[index] = partial(self._answer, unit, inputs, values, dead)
        return [
            (modules[name], Stub(each, self.calls[name], modules[name].forward))
            for name, each in answers.items()
        ]

    def _answer(
        self,
        unit: Unit,
        inputs: Inputs,
        values: Mapping[Name, Tensor],
        dead: Callable[..., Tensor],
    ) -> Any:
        leaves = []
        for leaf in unit.leaves:
            if not isinstance(leaf, Leaf):
                leaves.append(leaf)
            elif leaf.name in values:
                leaves.append(values[leaf.name])
            else:
                leaves.append(dead(leaf.shape(inputs), leaf.like, filled=self.filled))
        return _pytree.tree_unflatten(leaves, unit.spec)


def frozen_tensors(model: nn.Module, units: Iterable[Unit]) -> dict[str, Tensor]:
    """Return what the activations depend on: frozen parameters, and the buffers of the units."""
    names = {unit.key[0] for unit in units}
    tensors: dict[str, Tensor] = {
        name: p.detach() for name, p in model.named_parameters() if not p.requires_grad
    }
    for path, module in model.named_modules():
        if any(path == name or path.startswith(f"{name}.") or not name for name in names):
            own = module.named_buffers(prefix=path, recurse=False)
            tensors |= {name: torch.as_tensor(buffer) for name, buffer in own}
    return tensors
