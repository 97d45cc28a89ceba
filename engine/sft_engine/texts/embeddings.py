"""The model's input embeddings, and how to add something to them in a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sft_engine.errors import RecipeError

if TYPE_CHECKING:
    from sft_engine.flow import Batch, Run


def input_embeddings(model: nn.Module, who: str) -> nn.Module:
    """Return the module whose output is the embedded input.

    Args:
        model: Asked by `get_input_embeddings()`; else its first `nn.Embedding` is taken.
        who: Needs it, for the message.

    Raises:
        RecipeError: there is none, as in most image models.
    """
    ask = getattr(model, "get_input_embeddings", None)
    if ask is not None:
        with contextlib.suppress(NotImplementedError, AttributeError):
            found = ask()
            if isinstance(found, nn.Module):
                return found
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module
    raise RecipeError(
        f"{who} changes the input embeddings, and {type(model).__name__} has neither "
        f"`get_input_embeddings()` nor an `nn.Embedding`: leave {who} out, or take a text model"
    )


@contextlib.contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the output of a module through a function in every forward pass inside."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def kept(run: Run, batch: Batch, module: nn.Module, embedded: Tensor) -> Tensor:
    """Return which positions of embedded inputs (n, length, width) are no padding, as (n, length, 1).

    Known by `attention_mask`, else by the embedding's `padding_idx`; else every position counts.
    """
    mask = batch.inputs.get("attention_mask")
    padding = getattr(module, "padding_idx", None)
    if mask is None and padding is not None:
        ids = [each for each in batch.inputs.values() if not each.is_floating_point()]
        fitting = [each for each in ids if each.shape == embedded.shape[:-1]]
        mask = fitting[0] != padding if fitting else None
    if mask is None or mask.shape != embedded.shape[:-1]:
        return embedded.new_ones((*embedded.shape[:-1], 1))
    return mask.to(run.device, embedded.dtype).unsqueeze(-1)
