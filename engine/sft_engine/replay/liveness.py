"""Finds the cut of a model: which calls can be answered, and which of their tensors are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sft_engine.replay.cut import Cut, Leaf, Name, Unit, order_of
from sft_engine.replay.shapes import explain, fixed_places
from sft_engine.replay.stubs import installed, nothing
from sft_engine.replay.trace import CONSTANTS, Call, Probe, Refused, Trace, same_draws, trace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine.replay.stubs import Key

OPENINGS = 64
"""How many calls are taken apart before the search is given up."""
WIDE = 3
"""Dimensions from which on an input may be large: pictures and sounds, not lists of tokens."""


def find_cut(model: nn.Module, first: Probe, second: Probe) -> tuple[Cut, Trace, Trace]:
    """Find what can be answered in the model's forward passes.

    The caller sees to it that nothing is left of the attempts (`trace.pure`).

    Args:
        model: As it trains: what is frozen is frozen and in evaluation mode.
        first: A probe.
        second: One with other sizes: where a dimension is the same in both, it is taken as given.

    Returns:
        The cut, and the traces of both probes.

    Raises:
        Refused: nothing of use can be answered; the message says why.
    """
    one, other = trace(model, first), trace(model, second)
    if not one.gradients:
        raise Refused("nothing is trainable")
    opened: set[Key] = set()
    for _ in range(OPENINGS):
        search = _Search(model, first, one)
        units = search.units(other, second, opened)
        if units is None:
            continue
        live = search.live_leaves(units)
        awkward = [leaf for leaf in live if not leaf.is_storable]
        if not awkward:
            return search.finished(units, live, second), one, other
        opened.add(awkward[0].name[0])
    raise Refused("its activations cannot be kept example by example")


class _Search:
    """One attempt to find a cut.

    Args:
        model: The model.
        probe: Tried again and again.
        reference: Its trace.
    """

    def __init__(self, model: nn.Module, probe: Probe, reference: Trace) -> None:
        self.model, self.probe, self.reference = model, probe, reference
        self.values: dict[Name, Tensor] = {}
        self.filled = False
        self.calls: dict[str, int] = {}

    # --- which calls -----------------------------------------------------------------------------

    def units(self, other: Trace, second: Probe, opened: set[Key]) -> list[Unit] | None:
        """Return the units; None if a call has to be taken apart first, which is noted in `opened`.

        Raises:
            Refused: there is none.
        """
        calls = self.reference.clean_calls(opened)
        others = {call.key: call for call in other.clean_calls(opened)}
        units = []
        for call in calls:
            unit = self._unit(call, others.get(call.key), second)
            if unit is None:
                opened.add(call.key)
                return None
            # What has no dimension of examples, such as a table of positions, runs as ever.
            if any(dim.place and dim.place[1] == 0 for leaf in unit.tensors for dim in leaf.dims):
                units.append(unit)
        if not units:
            because = f": {self.reference.obstacle}" if self.reference.obstacle else ""
            raise Refused(f"nothing from the input on is frozen and the same each time{because}")
        self._count_calls(self.reference.root)
        return units

    def _unit(self, call: Call, other: Call | None, second: Probe) -> Unit | None:
        if other is None or call.spec != other.spec:
            return None
        leaves = [
            self._leaf(call, position, a, b, second)
            for position, (a, b) in enumerate(zip(call.leaves, other.leaves, strict=True))
        ]
        if any(isinstance(leaf, _Unknown) for leaf in leaves):
            return None
        return Unit(call.key, call.module, call.spec, leaves)

    def _leaf(self, call: Call, position: int, a: Any, b: Any, second: Probe) -> Any:
        if not isinstance(a, torch.Tensor):
            same = isinstance(a, CONSTANTS) and type(a) is type(b) and a == b
            return a if same else _Unknown()
        dims = explain(a, b, self.probe.inputs, second.inputs)
        if dims is None:
            return _Unknown()
        name = (call.key, position)
        self.values[name] = a
        return Leaf(name, dims, a.new_empty(0), order_of(a))

    def _count_calls(self, call: Call) -> None:
        self.calls[call.name] = max(self.calls.get(call.name, 0), call.index + 1)
        for child in call.children:
            self._count_calls(child)

    # --- which tensors ---------------------------------------------------------------------------

    def live_leaves(self, units: list[Unit]) -> list[Leaf]:
        """Return as few leaves as the outputs can be computed from.

        Raises:
            Refused: the outputs differ even if every call gets its own answer.
        """
        every = [leaf for unit in units for leaf in unit.tensors]
        if not self._holds(units, every):
            self.filled = True  # dead leaves may be written to, or viewed in another shape
            if not self._holds(units, every):
                raise Refused("its result is not the same when frozen parts are answered for")
        last = units[-1].tensors
        live = last if self._suffices(units, last) else every
        return self._fewest(units, live)

    def _fewest(self, units: list[Unit], live: list[Leaf]) -> list[Leaf]:
        """Drop leaves as long as the rest suffices, many at a time at first."""
        size = max(1, len(live) // 2)
        while True:
            start = 0
            while start < len(live):
                rest = live[:start] + live[start + size :]
                if self._suffices(units, rest):
                    live = rest
                else:
                    start += size
            if size == 1:
                return live
            size //= 2

    def _suffices(self, units: list[Unit], live: Sequence[Leaf]) -> bool:
        """Say whether the outputs are the same with NaN for all other leaves, and with large numbers."""
        return self._holds(units, live) and self._holds(units, live, _loud)

    def _holds(
        self, units: list[Unit], live: Sequence[Leaf], dead: Callable[..., Tensor] = nothing
    ) -> bool:
        cut = Cut(units, [leaf.name for leaf in live], self.calls, {}, filled=self.filled)
        values = {leaf.name: self.values[leaf.name] for leaf in live}
        return self._same(cut, values, dead=dead)

    def _same(
        self,
        cut: Cut,
        values: dict[Name, Tensor],
        inputs: dict[str, Tensor] | None = None,
        dead: Callable[..., Tensor] = nothing,
    ) -> bool:
        """Run the probe with stubs; say whether the outputs are bit for bit those of the full pass."""
        # A later operation may write in place.
        handed = {name: value.clone() for name, value in values.items()}
        try:
            with same_draws(), installed(cut.stubs(self.probe.inputs, handed, dead)):
                outputs = self.probe.run(inputs)
        except Exception:  # noqa: BLE001  a model may raise anything when it meets a NaN
            return False
        reference = self.reference.outputs
        return len(outputs) == len(reference) and all(map(torch.equal, outputs, reference))

    # --- what else need not be there -------------------------------------------------------------

    def finished(self, units: list[Unit], live: list[Leaf], second: Probe) -> Cut:
        """Return the cut, with as few positions and inputs as suffice."""
        for leaf in live:
            leaf.first = self._reads_first(units, live, leaf)
        fixed = fixed_places(self.probe.inputs, second.inputs)
        names = [leaf.name for leaf in live]
        obstacle = self.reference.obstacle
        cut = Cut(units, names, self.calls, fixed, filled=self.filled, obstacle=obstacle)
        unread = [name for name in self.probe.inputs if self._is_unread(cut, name)]
        return replace(cut, stand_ins=tuple(unread))

    def _reads_first(self, units: list[Unit], live: list[Leaf], leaf: Leaf) -> bool:
        """Say whether of (examples, positions, width) only the first position is read."""
        value = self.values[leaf.name]
        if leaf.batch != 0 or value.ndim != WIDE or value.shape[1] < 2:  # noqa: PLR2004
            return False
        if not value.is_floating_point():
            return False
        cut = Cut(units, [each.name for each in live], self.calls, {}, filled=self.filled)
        values = {each.name: self.values[each.name] for each in live}
        for poison in (float("nan"), 1e4):
            changed = value.clone()
            changed[:, 1:] = poison
            if not self._same(cut, {**values, leaf.name: changed}):
                return False
        return True

    def _is_unread(self, cut: Cut, name: str) -> bool:
        """Say whether only units read an input; asked of large ones alone, others are cheap to have."""
        value = self.probe.inputs[name]
        if not value.is_floating_point() or value.ndim < WIDE:
            return False
        values = {each: self.values[each] for each in cut.live}
        return all(
            self._same(cut, values, {**self.probe.inputs, name: dead(value.shape, value)})
            for dead in (nothing, _loud)
        )


class _Unknown:
    """A leaf of which nothing can be said."""


def _loud(shape: Sequence[int], like: Tensor, *, filled: bool = False) -> Tensor:
    """Return large finite numbers: what hides a NaN does not hide them."""
    if not like.dtype.is_floating_point:
        return nothing(shape, like, filled=filled)
    signs = torch.arange(1.0, shape[-1] + 1.0 if len(shape) else 2.0, device=like.device) % 3 - 1
    row = (1e4 * signs).to(like.dtype)
    loud = row.expand(tuple(shape)) if len(shape) else row[0]
    return loud.clone() if filled else loud
