"""What one forward pass calls, and which of the calls give the same for an example every time.

A call is *clean* if nothing that trains, no random draw and no statistic of the batch can have a part
in what it returns. That is read from one forward pass in the training configuration, from autograd
and from the states of the generators: no list of layers or of architectures is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]
CONSTANTS = (str, int, float, bool, type(None), torch.dtype, torch.device)


class Refused(Exception):
    """Replay cannot hold here; the message says why, as the end of a sentence."""


def reason_of(error: Exception) -> str:
    """Return why an attempt failed, as the end of a sentence."""
    if isinstance(error, Refused):
        return str(error)
    said = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"trying it out failed with {said}"


@dataclass
class Probe:
    """A few examples to try the model on.

    Args:
        inputs: Model inputs by name; the first dimension is the example.
        read: Runs the model on inputs of these shapes and returns every tensor that training and
            evaluation read of its outputs.
        valid: By input and dimension, which positions of each example are not padding (n, length);
            for dimensions that are padded to the longest example.
        exact: The same as `read` without autocast; None if there is none.
    """

    inputs: dict[str, Tensor]
    read: Callable[[Inputs], list[Tensor]]
    valid: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    exact: Callable[[Inputs], list[Tensor]] | None = None

    @property
    def exactly(self) -> Probe:
        """The same examples, read without autocast."""
        return self if self.exact is None else replace(self, read=self.exact, exact=None)

    def run(self, inputs: Inputs | None = None) -> list[Tensor]:
        """Run the model on these, or on other, inputs."""
        return self.read(dict(self.inputs if inputs is None else inputs))


@dataclass
class Call:
    """One call of a module in a forward pass.

    Args:
        name: Path of the module.
        module: The module.
        index: How often it had been called before in this pass.
        parent: The call that made this one; None for the model's own.
    """

    name: str
    module: nn.Module
    index: int
    parent: Call | None
    children: list[Call] = field(default_factory=list)
    clean: bool = False
    ended: int = -1
    leaves: list[Any] = field(default_factory=list)
    spec: Any = None

    @property
    def key(self) -> tuple[str, int]:
        """What identifies the call in every pass."""
        return self.name, self.index


@dataclass
class Trace:
    """What a forward pass called and returned.

    Args:
        root: The model's own call.
        outputs: What the probe read of the model's outputs.
        gradients: Of the trainable parameters, by name; None where the outputs do not depend on one.
        obstacle: What ended the clean part though no trainable parameter did; empty if nothing.
    """

    root: Call
    outputs: list[Tensor]
    gradients: dict[str, Tensor | None]
    obstacle: str = ""

    def clean_calls(self, opened: set[tuple[str, int]]) -> list[Call]:
        """Return the largest clean calls in the order of their ends, those in `opened` taken apart."""
        found: list[Call] = []
        _collect(self.root, opened, found)
        return sorted(found, key=lambda call: call.ended)


def _collect(call: Call, opened: set[tuple[str, int]], found: list[Call]) -> None:
    if call.clean and call.key not in opened:
        found.append(call)
        return
    for child in call.children:
        _collect(child, opened, found)


def gradients_of(model: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor | None]:
    """Return the gradient of the sum of squares of the outputs for every trainable parameter.

    `.grad` is not touched, and hooks that wait for it do not fire.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    learned = [output for output in outputs if output.requires_grad]
    if not learned:
        return dict.fromkeys(named)
    total = torch.stack([output.float().square().sum() for output in learned]).sum()
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return dict(zip(named, grads, strict=True))


def trace(model: nn.Module, probe: Probe) -> Trace:
    """Run a probe with a hook on every module; the passes before and after draw the same numbers."""
    recorder = _Recorder(model)
    with same_draws():
        with recorder.recording():
            outputs = probe.run()
        if recorder.root is None:
            raise Refused("the model was not called as a module")
        gradients = gradients_of(model, outputs)
    values = [output.detach() for output in outputs]
    return Trace(recorder.root, values, gradients, recorder.obstacle)


class _Recorder:
    """Hooks that note every call of every module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.root: Call | None = None
        self._stack: list[Call] = []
        self._counts: dict[int, int] = {}
        self._ended = 0
        self.obstacle = ""
        self._drawn = self._mixed = False
        self._start = generators()
        self._trains = {
            id(module): any(p.requires_grad for p in module.parameters())
            for module in model.modules()
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the calls made inside."""
        handles = []
        try:
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_pre_hook(self._before(name)))
                handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[..., None]:
        def begin(module: nn.Module, _args: Any) -> None:
            index = self._counts.get(id(module), 0)
            self._counts[id(module)] = index + 1
            parent = self._stack[-1] if self._stack else None
            if parent is not None:
                self._look_for_draws(parent)
            call = Call(name, module, index, parent)
            if parent is not None:
                parent.children.append(call)
            elif self.root is None:
                self.root = call
            self._stack.append(call)

        return begin

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._stack.pop()
        call.ended = self._ended = self._ended + 1
        leaves, call.spec = _pytree.tree_flatten(output)
        taught = self._trains[id(module)] or _learned(leaves) or _learned((args, kwargs))
        self._look_for_draws(call)
        if not self._mixed and _mixes_batch(module):
            self._mixed = True
            self._blame(call, "normalises by the statistics of each batch")
        call.clean = not (taught or self._drawn or self._mixed)
        if call.clean:
            call.leaves = [_copy(leaf) for leaf in leaves]

    def _look_for_draws(self, call: Call) -> None:
        # Once is enough: what comes later comes after a draw.
        if not self._drawn and generators() != self._start:
            self._drawn = True
            self._blame(call, "draws at random")

    def _blame(self, call: Call, reason: str) -> None:
        where = f"`{call.name}`" if call.name else "the model itself"
        self.obstacle = self.obstacle or f"{where} {reason}"


def _learned(value: Any) -> bool:
    leaves = _pytree.tree_leaves(value)
    return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def _mixes_batch(module: nn.Module) -> bool:
    """Say whether a module normalises by its batch, so that an example's result depends on the others."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def _copy(leaf: Any) -> Any:
    # A later operation may write in place.
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


# --- leaving no trace -----------------------------------------------------------------------------


def generators() -> tuple[Any, ...]:
    """Return the states of the generators of python, numpy and torch as comparable values."""
    numbers = np.random.get_state()  # noqa: NPY002 (models may draw from it)
    device = torch.cuda.get_rng_state().numpy().tobytes() if _cuda() else b""
    return (
        torch.get_rng_state().numpy().tobytes(),
        device,
        random.getstate(),
        numbers[1].tobytes(),  # type: ignore[union-attr,index]
        numbers[2],  # type: ignore[index]
    )


def _cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


@contextmanager
def same_draws() -> Iterator[None]:
    """Give the generators back as they were."""
    numbers, python, own = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    device = torch.cuda.get_rng_state() if _cuda() else None
    try:
        yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)
        torch.set_rng_state(own)
        if device is not None:
            torch.cuda.set_rng_state(device)


@contextmanager
def pure(model: nn.Module) -> Iterator[None]:
    """Leave buffers, gradients, training flags and generators as they were, whatever happens inside.

    A NaN that goes through a batch norm in training mode stays in its statistics otherwise.
    """
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()  # noqa: SLF001
    ]
    grads = [(p, p.grad) for p in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    try:
        with same_draws():
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer  # noqa: SLF001
                if buffer is not None and value is not None and not _equal(buffer, value):
                    buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
        for module, training in flags:
            module.training = training


def _equal(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors hold the same bits, NaN being equal to NaN."""
    return torch.equal(one, other) or bool(((one == other) | one.isnan() & other.isnan()).all())
