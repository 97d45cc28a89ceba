"""Heads that train together: the runs of a study meet in each micro-batch, and one pass serves all.

What remains of a model behind a replayed trunk is small, and much of a step's time is spent in calling it.
Where several runs differ in seeds or data alone, their micro-batches are put after each other, the trunk's
activations too, and go through one model whose trainable layers are stacked: a batched matrix product
gives each part of the batch to the weights of its own run. Loss, gradients, clipping and optimizer step are each
run's own, as is everything that is written down. The results are those of separate runs up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree

from sft_engine.replay.check import tolerance, values_of
from sft_engine.replay.stacking import stacked
from sft_engine.replay.stand_ins import is_stand_in
from sft_engine.replay.stubs import installed, nothing
from sft_engine.replay.trace import Refused
from sft_engine.replay.turns import Turns

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sft_engine.devices import Precision
    from sft_engine.flow import Batch, Run
    from sft_engine.replay.cut import Cut
    from sft_engine.replay.stubs import Forward, Stub
    from sft_engine.replay.turns import Seat


@dataclass
class Part:
    """What a run brings to a micro-batch.

    Args:
        run: The run.
        precision: Autocast.
        cut: What is answered.
        batch: Its own examples.
        rows: Their activations, one tensor a live leaf.
        valid: Their positions that are no padding.
        leaves: Its share of the model's outputs, where its own backward pass ends.
    """

    run: Run
    precision: Precision
    cut: Cut
    batch: Batch
    rows: list[Tensor]
    valid: Mapping[tuple[str, int], Tensor]
    leaves: list[Any] = field(default_factory=list)

    def stubs(self) -> list[tuple[nn.Module, Stub]]:
        """Return those that serve it alone."""
        inputs = self.batch.inputs
        return self.cut.stubs(inputs, values_of(self.cut, self.rows, inputs, self.valid))

    def alone(self) -> list[Any]:
        """Run its own model; return the flat outputs."""
        kept: list[Any] = []
        noting = self.run.model, _noting(self.run.model, kept)
        stubs: list[tuple[nn.Module, Forward]] = [*self.stubs(), noting]
        with torch.no_grad(), installed(stubs):
            self.forward(self.batch.inputs)
        return _pytree.tree_leaves(kept[0])

    def forward(self, inputs: dict[str, Tensor]) -> None:
        """Run the model, whatever answers for its layers."""
        with self.precision.autocast():
            self.run.backbone.forward(self.run.model, inputs)


@dataclass
class Pass:
    """A joint pass, until its gradients have gone back.

    Args:
        parts: Those that it serves.
        outputs: Flat outputs for all of them, with their graph.
        spec: How the outputs are nested.
    """

    parts: Sequence[Part]
    outputs: list[Any]
    spec: Any

    def share(self, place: int) -> Any:
        """Return the outputs for the examples of a part, as the model would, cut off from the graph."""
        part = self.parts[place]
        part.leaves = [_leaf(each) for each in _slices(self.outputs, place, len(part.batch.ids))]
        return _pytree.tree_unflatten(part.leaves, self.spec)

    def backward(self, _seats: Sequence[Seat]) -> None:
        """Pass the gradients of all outputs back together, each to the weights of its run.

        A run that has failed in the meantime gives none, or only some: its weights are of no use any more.
        """
        roots, gradients = [], []
        for output, *leaves in zip(
            self.outputs, *(part.leaves for part in self.parts), strict=True
        ):
            if any(isinstance(leaf, torch.Tensor) and leaf.grad is not None for leaf in leaves):
                roots.append(output)
                own = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
                gradients.append(torch.cat(own))
        if roots:
            torch.autograd.backward(roots, gradients)


@dataclass
class JointHeads:
    """The runs of one process that train their heads together.

    Args:
        turns: In which they are carried out.
        steps: Micro-batches of each run that were passed together with those of others, by run folder.
        refusal: Why they cannot; empty while they can.
        unlike: Whether micro-batches have met that could not be put after each other.
    """

    turns: Turns = field(default_factory=Turns)
    steps: Counter[str] = field(default_factory=Counter)
    refusal: str = ""
    unlike: bool = False
    _for: list[tuple[int, int]] = field(default_factory=list)  # whom the layers are those of
    _layers: list[tuple[nn.Module, Forward]] = field(default_factory=list)
    _seats: list[Seat] = field(default_factory=list)  # whose generators the layers draw from

    def reason(self, folder: Path) -> str:
        """Return why no step of a run was taken with others; empty if one was."""
        if self.steps[str(folder)]:
            return ""
        return self.refusal or ("the shapes of their batches differ" if self.unlike else "")

    @contextmanager
    def serving(self, part: Part) -> Iterator[None]:
        """Answer for the whole model with this run's share of a joint pass.

        Args:
            part: Of this run. Where no pass can be joint, its stubs serve it alone, as they do in all calls
                of the model but the first.
        """
        met = None if self.refusal else self.turns.meet(part, self._forward)
        if met is None:
            with installed(part.stubs()):
                yield
            return
        joint, outputs = met
        with installed([(part.run.model, _answering(outputs, part))]):
            yield
        self.turns.meet(part, joint.backward)

    def _forward(self, seats: Sequence[Seat]) -> None:
        """Pass the micro-batches of all together, and hand out the outputs."""
        parts: list[Part] = [seat.given for seat in seats]
        if self.refusal or len(parts) < 2:  # noqa: PLR2004
            return
        if not _fit(parts):
            self.unlike = True
            return
        self._seats[:] = seats
        try:
            joint = self._joint(parts)
        except Refused as error:
            self.refusal = str(error)
            return
        self.steps.update(str(part.run.folder) for part in parts)
        for place, seat in enumerate(seats):
            seat.back = joint, joint.share(place)

    def _joint(self, parts: Sequence[Part]) -> Pass:
        """Run the first model for all.

        Raises:
            Refused: it does not give what each run's own model does.
        """
        before = [seat.generators.torch for seat in self._seats]
        # Other runs may meet, or other layers train.
        key = [(id(part.run), id(part.cut)) for part in parts]
        new = self._for != key
        if new:
            self._layers = stacked([part.run.model for part in parts], self._seats)
        first = parts[0]
        kept: list[Any] = []
        inputs = joint_inputs(parts)
        values = values_of(first.cut, _joined([p.rows for p in parts]), inputs, _valid(parts))
        noting = first.run.model, _noting(first.run.model, kept)
        replaced: list[tuple[nn.Module, Forward]] = [
            *first.cut.stubs(inputs, values),
            *self._layers,
            noting,
        ]
        with installed(replaced):
            first.forward(inputs)
        flat, spec = _pytree.tree_flatten(kept[0])
        size = len(first.batch.ids)
        _require_by_example(flat, size * len(parts))
        if new:
            for place, part in enumerate(parts):
                _require_same_alone(part, before[place], _slices(flat, place, size))
        self._for = key
        return Pass(parts, flat, spec)


# --- which parts fit ------------------------------------------------------------------------------


def _fit(parts: Sequence[Part]) -> bool:
    """Say whether micro-batches can be put after each other: as many examples, inputs of like shape.

    Inputs may differ in length where nothing is kept by position, for then only the frozen part looks at it.
    """
    first = parts[0]
    by_position = any(leaf.place is not None for leaf in first.cut.kept)
    for part in parts[1:]:
        if len(part.batch.ids) != len(first.batch.ids):
            return False
        if part.batch.inputs.keys() != first.batch.inputs.keys():
            return False
        for name, value in part.batch.inputs.items():
            own = first.batch.inputs[name]
            if value.dim() != own.dim() or (by_position and value.shape != own.shape):
                return False
    return True


def joint_inputs(parts: Sequence[Part]) -> dict[str, Tensor]:
    """Put the inputs of all after each other, padded with zeros to the longest."""
    together = {}
    for name, value in parts[0].batch.inputs.items():
        own = [part.batch.inputs[name] for part in parts]
        shape = [max(sizes) for sizes in zip(*(each.shape[1:] for each in own), strict=True)]
        rows = sum(map(len, own))
        if all(map(is_stand_in, own)):
            together[name] = nothing((rows, *shape), value)
        elif all(list(each.shape[1:]) == shape for each in own):
            together[name] = torch.cat(own)
        else:
            padded = value.new_zeros((rows, *shape))
            start = 0
            for each in own:
                padded[(slice(start, start + len(each)), *map(slice, each.shape[1:]))] = each
                start += len(each)
            together[name] = padded
    return together


def _joined(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(leaf) for leaf in zip(*rows, strict=True)]


def _valid(parts: Sequence[Part]) -> dict[tuple[str, int], Tensor]:
    places = {leaf.place for leaf in parts[0].cut.kept if leaf.place is not None}
    return {place: torch.cat([part.valid[place] for part in parts]) for place in places}


# --- outputs --------------------------------------------------------------------------------------


def _noting(model: nn.Module, kept: list[Any]) -> Forward:
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        kept.append(own(*args, **kwargs))
        return kept[-1]

    return forward


def _answering(outputs: Any, part: Part) -> Forward:
    own, first = part.run.model.forward, [outputs]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if first:
            return first.pop()
        # A component that looks twice: it shall see other dropout.
        with installed(part.stubs()):
            return own(*args, **kwargs)

    return forward


def _require_by_example(flat: Sequence[Any], rows: int) -> None:
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    if not tensors or any(not each.dim() or len(each) != rows for each in tensors):
        raise Refused("the outputs of the model are not one row an example")


def _slices(flat: Sequence[Any], place: int, size: int) -> list[Any]:
    return [
        each[place * size : (place + 1) * size] if isinstance(each, torch.Tensor) else each
        for each in flat
    ]


def _leaf(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _require_same_alone(part: Part, draws: Tensor, found: Sequence[Any]) -> None:
    """Raise Refused unless the run's own model gives the same, up to rounding."""
    torch.set_rng_state(draws)
    expected = part.alone()
    if len(expected) != len(found):
        raise Refused("the joint pass gives other outputs")
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, torch.Tensor) and not other.isnan().all():
            _require_close(one.detach(), other)


def _require_close(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise Refused("the joint pass gives outputs of another shape")
    scale = max(float(other.nan_to_num().abs().max()), 1e-6)
    limit = tolerance(other.dtype) * scale
    if not torch.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True):
        raise Refused("the joint pass does not give what the runs give by themselves")


_CURRENT: ContextVar[JointHeads | None] = ContextVar("joint_heads", default=None)


def current() -> JointHeads | None:
    """Return with whom a run that begins now trains together; None for a run by itself."""
    return _CURRENT.get()


@contextmanager
def joining(joint: JointHeads) -> Iterator[None]:
    """Let the runs that begin in this context train together."""
    token = _CURRENT.set(joint)
    try:
        yield
    finally:
        _CURRENT.reset(token)
