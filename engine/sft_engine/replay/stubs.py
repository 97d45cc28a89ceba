"""Stubs in place of the forward passes of modules, on the instances, for the time of one pass.

The model's own `forward` runs as ever: masks, position tables, residual sums and loss are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Key = tuple[str, int]
"""A module's path, and how often it was called before in the same pass."""


class _Stop(BaseException):  # not an Exception: models catch those
    """The last activation that was asked for is there."""


Forward = Callable[..., Any]
"""What answers in place of a module's forward pass: a stub, for one."""


class Stub:
    """Stands in for a module's forward pass in those of its calls that have an answer.

    Args:
        answers: What to return, by index of the call.
        calls: How often the module is called in a pass; recomputing a checkpoint begins again at 0.
        own: The module's own forward pass, for the other calls.
    """

    def __init__(
        self, answers: dict[int, Callable[[], Any]], calls: int, own: Callable[..., Any]
    ) -> None:
        self.answers, self.calls, self.own = answers, calls, own
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer, or run the module."""
        answer = self.answers.get(self.count % self.calls)
        self.count += 1
        return self.own(*args, **kwargs) if answer is None else answer()


@contextmanager
def installed(stubs: Sequence[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Answer for the modules inside; afterwards their own forward passes are back."""
    before: list[tuple[dict[str, Any], Any]] = []
    try:
        for module, stub in stubs:
            names = vars(module)  # quicker than setattr, which looks for parameters
            before.append((names, names.get("forward")))
            names["forward"] = stub
        yield
    finally:
        for names, own in reversed(before):
            if own is None:
                del names["forward"]
            else:
                names["forward"] = own


def capture(
    modules: dict[str, nn.Module], wanted: Sequence[Key], run: Callable[[], Any]
) -> dict[Key, Any]:
    """Run a forward pass without gradients until the last wanted call has ended; return what they gave.

    Args:
        modules: Those of the wanted calls, by path.
        wanted: The calls.
        run: Runs the model.

    Raises:
        LookupError: the pass ended without one of the calls.
    """
    found: dict[Key, Any] = {}
    handles = []
    try:
        for name in {name for name, _ in wanted}:
            keep = _keep(name, set(wanted), found)
            handles.append(modules[name].register_forward_hook(keep))
        with torch.no_grad():
            run()
    except _Stop:
        return found
    finally:
        for handle in handles:
            handle.remove()
    missing = next(name for name, index in wanted if (name, index) not in found)
    raise LookupError(f"`{missing}` was not called")


def _keep(name: str, wanted: set[Key], found: dict[Key, Any]) -> Callable[..., None]:
    count = 0

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal count
        key, count = (name, count), count + 1
        if key in wanted:
            found[key] = output
            if len(found) == len(wanted):
                raise _Stop

    return keep


def nothing(shape: Sequence[int], like: Tensor, *, filled: bool = False) -> Tensor:
    """Return a tensor of NaN (of 0, where there is none) that takes no memory, unless it must.

    Args:
        shape: Its shape.
        like: Has its type and device.
        filled: Take memory: an operation in place, or a view, needs it.
    """
    value = float("nan") if like.dtype.is_floating_point or like.dtype.is_complex else 0
    return like.new_full(tuple(shape), value) if filled else like.new_full((), value).expand(shape)
