"""How much each channel of a feature map matters: the loss without it (DELTA's attention)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sft_engine import View
from sft_engine.feed import evaluation_batches
from sft_regularizers.features import map_of

if TYPE_CHECKING:
    from sft_engine import Batch, Run

RATE = 0.01
"""Learning rate of Adam that fits a head."""

SIZE = 16
"""Examples of a batch; not that of training, so that accumulation does not change what is measured."""


def attention_of(increases: Tensor) -> Tensor:
    """Return the attention of channels, softmax of how much the loss rises without each (equation 6)."""
    return increases.softmax(dim=0)


def measured_attention(
    run: Run,
    model: nn.Module,
    paths: Sequence[str],
    examples: int,
    head_epochs: int,
    is_last: Callable[[Tensor], bool],
) -> dict[str, Tensor]:
    """Measure the attention of every channel of some modules' outputs, on training examples.

    Every rank looks at the same examples, so that no rank needs to tell another.

    Args:
        run: Knows task, data and how to run the model.
        model: In evaluation mode; a copy of it is used.
        paths: Of the modules.
        examples: How many.
        head_epochs: Passes over them that fit the head of the copy before.
        is_last: Whether the channels of a feature map are its last dimension.
    """
    model = copy.deepcopy(model)
    batches = some_batches(run, examples, min(SIZE, examples))
    _fit_head(run, model, batches, head_epochs)
    with torch.no_grad():
        whole = _mean_loss(run, model, batches)
        return {
            path: attention_of(_without_each(run, model, path, batches, is_last) - whole)
            for path in paths
        }


def _without_each(
    run: Run, model: nn.Module, path: str, batches: Sequence[Batch], is_last: Callable[..., bool]
) -> Tensor:
    """Return the loss with each channel of a module's output set to zero (c,)."""
    switch = Switch(is_last)
    hook = model.get_submodule(path).register_forward_hook(switch)
    losses = []
    try:
        while switch.channel < switch.channels:
            losses.append(_mean_loss(run, model, batches))
            switch.channel += 1
    finally:
        hook.remove()
    return torch.stack(losses)


class Switch:
    """A forward hook that sets one channel of an output to zero."""

    def __init__(self, is_last: Callable[[Tensor], bool]) -> None:
        self.channel, self.channels = 0, 1
        self._is_last = is_last

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """Return the output without the channel."""
        features = map_of(output)
        if features is None:
            return output
        dim = features.ndim - 1 if self._is_last(features) else 1
        self.channels = features.shape[dim]
        changed = features.clone()
        changed.select(dim, self.channel).zero_()
        if isinstance(output, Tensor):
            return changed
        if isinstance(output, (tuple, list)):
            return type(output)([changed, *output[1:]])
        output.last_hidden_state = changed
        return output


def _mean_loss(run: Run, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    terms = [(run.task.loss(run.backbone.forward(model, b.inputs), b), b) for b in batches]
    units = sum(batch.units.get(term.per, 1.0) for term, batch in terms)
    return torch.stack([term.value for term, _ in terms]).sum() / max(units, 1e-12)


def _fit_head(run: Run, model: nn.Module, batches: Sequence[Batch], epochs: int) -> None:
    """Train the head of a copy on the frozen rest, as the authors do before they measure."""
    names = set(run.layer_groups[-1].parameters)
    head = [p for name, p in model.named_parameters() if name in names]
    for parameter in head:
        parameter.requires_grad_(True)  # noqa: FBT003
    optimizer = torch.optim.Adam(head, lr=RATE)
    for batch in [batch for _ in range(epochs) for batch in batches]:
        optimizer.zero_grad()
        _mean_loss(run, model, [batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def some_batches(run: Run, examples: int, size: int) -> list[Batch]:
    """Return batches of the training split, evenly over it, as evaluation sees them."""
    split = run.splits["train"]
    starts = range(0, len(split), size)
    number = -(-min(examples, len(split)) // size)
    chosen = starts[:: max(1, len(starts) // number)][:number]
    batches = list(evaluation_batches(split, run.task, run.backbone, View(), size, chosen))
    for batch in batches:
        batch.to(run.device)
    return batches
