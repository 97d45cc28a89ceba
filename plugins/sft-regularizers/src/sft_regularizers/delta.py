"""DELTA: feature maps stay near those of the start, channel by channel."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from sft_engine import LossTerm, RecipeError, hookimpl
from sft_regularizers.answers import sum_over_items
from sft_regularizers.attention import measured_attention, some_batches
from sft_regularizers.embeddings import input_embeddings, kept
from sft_regularizers.features import Listener, feature_distance, outputs_of_groups
from sft_regularizers.penalties import half_square_sum
from sft_regularizers.selection import Parameters, beside, split_head, trainable
from sft_regularizers.teachers import START, Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sft_engine import Batch, Run

MAP = 4
"""Dimensions of a feature map of an image: examples, channels, height, width."""

TOKENS = 3
"""Dimensions of a sequence of vectors: examples, tokens, channels."""


class Delta:
    """Hold the feature maps near those that the model at the start makes of the same inputs.

    Li et al. 2019, "DELTA: Deep Learning Transfer using Feature Map with Attention", equations 4 to 6,
    in the normalization of the authors' code: half the squared distance of each map, mean over its
    positions, each channel times its number and its attention. Padding is left out. The start runs
    beside the model in evaluation mode, without gradients: a forward pass more for each micro-batch.

    Args:
        alpha: Strength of the pull of the feature maps.
        beta: Strength of the pull of the head, the last layer group, to zero.
        layers: Shell patterns of layer groups or modules whose outputs are compared; empty for those
            of all layer groups below the head.
        attention: Of the channels: `uniform`, or `measured` before training, by how much the loss
            rises when a channel is switched off. That costs a forward pass for each channel and batch.
        examples: Of the training split, from which attention is measured.
        head_epochs: Passes over them that fit the head of a copy first, without which a new head's
            loss would say nothing; 0 for a head that is trained already.
        channels: Where a map of four dimensions has them; `auto` goes by what the model says, else first.
    """

    def __init__(
        self,
        alpha: Annotated[float, Ge(0)] = 0.01,
        beta: Annotated[float, Ge(0)] = 0.01,
        layers: tuple[str, ...] = (),
        attention: Literal["uniform", "measured"] = "uniform",
        examples: Annotated[int, Gt(0)] = 64,
        head_epochs: Annotated[int, Ge(0)] = 10,
        channels: Literal["auto", "first", "last"] = "auto",
    ) -> None:
        self.alpha, self.beta, self.layers = alpha, beta, tuple(layers)
        self.attention, self.examples, self.head_epochs = attention, examples, head_epochs
        self.channels = channels
        self._start = Teacher()
        self._head: Parameters = {}
        self._own: Listener | None = None
        self._before: Listener | None = None
        self._weights: dict[str, Tensor] = {}
        self._embeddings: nn.Module = nn.Module()

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Copy the start, unless a checkpoint holds it, and listen to both models."""
        self._head = split_head(run)[1]
        if not self.alpha:
            return
        self._start.attach(run, START)
        assert self._start.model is not None
        self._embeddings = _embeddings_of(run.model)
        paths = self._paths(run, self._start.model)
        if self.attention == "measured" and not self._weights:
            self._weights = measured_attention(
                run, self._start.model, paths, self.examples, self.head_epochs, self._is_last
            )
        self._weights = {path: each.to(run.device) for path, each in self._weights.items()}
        self._own = Listener(run.model, paths, learning=True)
        self._before = Listener(self._start.model, paths)

    def _paths(self, run: Run, model: nn.Module) -> list[str]:
        """Return the paths of the modules whose outputs are compared.

        Raises:
            RecipeError: a pattern matches nothing that has an output of its own.
        """
        (batch,) = some_batches(run, 2, 2)
        found, modules = outputs_of_groups(run, model, batch)
        paths: list[str] = []
        for pattern in self.layers or found:
            hits = [found[group] for group in found if fnmatchcase(group, pattern)]
            hits = hits or [path for path in modules if fnmatchcase(path, pattern)]
            if not hits:
                raise RecipeError(
                    f'`layers` of delta: "{pattern}" matches neither a layer group below the head '
                    f"({', '.join(found)}) nor a module whose output is a feature map, such as "
                    f"`{modules[-1]}`"
                )
            paths += hits
        return list(dict.fromkeys(paths))

    def _is_last(self, features: Tensor) -> bool:
        """Whether the channels are the last dimension."""
        if features.ndim < MAP:
            return not (features.ndim == TOKENS and self.channels == "first")
        if self.channels != "auto":
            return self.channels == "last"
        return str(getattr(self._start.model, "output_fmt", "NCHW")).endswith("NHWC")

    @hookimpl(tryfirst=True)
    def sft_loss_terms(self, run: Run, batch: Batch) -> Iterator[LossTerm]:
        """Add the distance; before another term runs the model again and other features come by."""
        if self._own is not None and self._before is not None:
            own = self._own.take()
            self._start.answer(run, batch)
            before = self._before.take()
            parts = [self._apart(run, batch, p, own[p], before[p]) for p in own if p in before]
            if parts:
                each = torch.stack(parts).sum(dim=0)
                yield LossTerm("delta", sum_over_items(each, batch), self.alpha)
        head = trainable(self._head)
        if self.beta and head:
            yield LossTerm("delta/head", half_square_sum(head.values()), self.beta, per="step")

    def _apart(self, run: Run, batch: Batch, path: str, own: Tensor, before: Tensor) -> Tensor:
        mask = None
        if own.ndim == TOKENS and self._is_last(own):
            mask = kept(run, batch, self._embeddings, own.detach()).squeeze(-1)
        weights = self._weights.get(path)
        return feature_distance(own, before, weights, mask, channels_last=self._is_last(own))

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the start, and the attention."""
        return {**self._start.state_dict(), "attention": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._start.load_state_dict(state)
        self._weights = beside(state["attention"], self._weights or state["attention"])


def _embeddings_of(model: nn.Module) -> nn.Module:
    """Return the input embeddings, which know what padding is; an empty module if there are none."""
    try:
        return input_embeddings(model, "delta")
    except RecipeError:
        return nn.Module()
