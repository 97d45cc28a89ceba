"""The last layer of an image model: where it is, and another one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

Layer = nn.Linear | nn.Conv2d


def last_layer(model: nn.Module, uses: Mapping[str, int]) -> str:
    """Return the path of the layer that makes the logits: the one that a forward pass uses last.

    Args:
        model: A classifier, whatever it calls its head: `fc`, `head`, `classifier.6`.
        uses: The result of `sft_engine.first_use.first_use`.

    Raises:
        LookupError: the model ends in something that is neither a linear layer nor a convolution.
    """
    last = max(uses, key=lambda name: uses[name], default="")
    path = last.rpartition(".")[0]
    if not last or not isinstance(model.get_submodule(path), Layer):
        what = type(model.get_submodule(path)).__name__ if last else "nothing that trains"
        raise LookupError(f"ends in {what}, not in a linear layer or a convolution")
    return path


def outputs_of(model: nn.Module, path: str) -> int:
    """Return how many outputs the layer at `path` has."""
    layer = model.get_submodule(path)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


def replace_head(model: nn.Module, path: str, outputs: int) -> None:
    """Put a new layer of the same kind in the place of the last one, drawn from torch's random state.

    Args:
        model: Changed in place.
        path: The result of `last_layer`.
        outputs: Of the new layer.
    """
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, _like(model.get_submodule(path), outputs))


def _like(layer: nn.Module, outputs: int) -> Layer:
    assert isinstance(layer, Layer)
    bias = layer.bias is not None
    place: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias, **place)
    return nn.Conv2d(
        layer.in_channels,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        bias=bias,
        **place,
    )
