"""Feature maps inside a model: which module makes them, and how far two of them are apart."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sft_engine import Batch, Run

VECTOR = 2
"""Dimensions of the least that is a feature map: examples, channels."""


def feature_distance(
    own: Tensor,
    start: Tensor,
    attention: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    channels_last: bool,
) -> Tensor:
    """Return half the squared distance between two feature maps of each example (n,).

    The mean over positions, and the sum over channels, each times the number of channels and its
    attention: `1/2 * sum_j c * W_j * |own_j - start_j|^2 / positions`.

    Args:
        own: (n, c, ...) or (n, ..., c).
        start: The same shape; gets no gradient.
        attention: W (c,), of sum one; None for the same for all.
        mask: Which positions count (n, positions); None for all.
        channels_last: Whether channels are the last dimension, and not the second.
    """
    squares = (exact(own) - exact(start.detach())).square()
    if squares.ndim == VECTOR:
        squares = squares.unsqueeze(1)
    elif channels_last:
        squares = squares.flatten(1, -2)
    else:
        squares = squares.flatten(2).transpose(1, 2)
    if mask is None:
        each = squares.mean(dim=1)
    else:
        share = mask.to(squares.dtype).unsqueeze(-1)
        each = (squares * share).sum(dim=1) / share.sum(dim=1).clamp(min=1)
    if attention is not None:
        each = each * attention.to(each) * len(attention)
    return 0.5 * each.sum(dim=1)


def exact(features: Tensor) -> Tensor:
    """Return features in float32 or better: the difference of two near ones has no digits in bf16."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


def map_of(output: Any) -> Tensor | None:
    """Return the feature map that a module has returned: a tensor, or the first part; None if it is none."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    elif hasattr(output, "last_hidden_state"):
        output = output.last_hidden_state
    fits = isinstance(output, Tensor) and output.is_floating_point() and output.ndim >= VECTOR
    return output if fits else None


class Listener:
    """Keeps the latest outputs of some modules of one model; copies of the model are not listened to."""

    def __init__(self, model: nn.Module, paths: Iterable[str], *, learning: bool = False) -> None:
        """Listen from now on.

        Args:
            model: Whose modules they are.
            paths: Names of the modules.
            learning: Only to passes with gradients, not to evaluation.
        """
        self._modules = {path: model.get_submodule(path) for path in paths}
        self._learning = learning
        self._kept: dict[str, Tensor] = {}
        self._hooks = [
            module.register_forward_hook(functools.partial(self._listen, path))
            for path, module in self._modules.items()
        ]

    def _listen(self, path: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        features = map_of(output)
        listens = module is self._modules[path] and (torch.is_grad_enabled() or not self._learning)
        if listens and features is not None:
            self._kept.pop(path, None)  # to the end: the order is that of the forward pass
            self._kept[path] = features

    def take(self) -> dict[str, Tensor]:
        """Return what was kept, by path, in the order in which it was made; and forget it."""
        kept, self._kept = self._kept, {}
        return kept

    def close(self) -> None:
        """Listen no longer."""
        for hook in self._hooks:
            hook.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Listener:
        """Return itself: copies of the model bring the hooks along."""
        return self


def outputs_of_groups(run: Run, model: nn.Module, batch: Batch) -> tuple[dict[str, str], list[str]]:
    """Return the module that makes the output of each layer group below the head, and all that fit.

    It is the one that ends last in a forward pass, of those that hold weights of that group alone.

    Args:
        run: Knows the layer groups and how to run the model.
        model: The run's model, or a copy.
        batch: Two examples or more.

    Returns:
        Paths by the name of the layer group, and the paths of all modules with a feature map for each
        example, in the order in which they end.
    """
    modules = dict(model.named_modules())
    modules.pop("")
    listener = Listener(model, modules)
    with torch.no_grad():
        run.backbone.forward(model, batch.inputs)
    listener.close()
    n = len(batch.ids)
    paths = [path for path, features in listener.take().items() if len(features) == n]
    found = {}
    for group in run.layer_groups[:-1]:
        own = set(group.parameters)
        ends = [path for path in paths if _within(path, modules[path], own)]
        if ends:
            found[group.name] = ends[-1]
    return found, paths


def _within(path: str, module: nn.Module, names: set[str]) -> bool:
    """Whether a module has weights, all of them among those."""
    own = {f"{path}.{name}" for name, _ in module.named_parameters()}
    return bool(own) and own <= names
