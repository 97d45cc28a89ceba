"""A head of our own on any encoder: pooled states, dropout, one linear layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

Pooling = Literal["first", "mean", "last"]

_SETTINGS = "sft_head.json"
_WEIGHTS = "sft_head.safetensors"


def pool(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Return one vector an example: that of the first or last real token, or the mean of all.

    Shapes: states [examples, tokens, width], mask [examples, tokens], result [examples, width].
    Padding may be on either side; every example has at least one real token.
    """
    if how == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device) * mask
    index = places.argmax(1) if how == "last" else mask.argmax(1)
    return states[torch.arange(len(states), device=states.device), index]


def states(encoder: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the last states of all tokens, shape [examples, tokens, width]."""
    part = encoder.get_encoder() if encoder.config.is_encoder_decoder else encoder
    last: Tensor = part(**inputs)[0]
    return last


class EncoderWithHead(nn.Module):
    """An encoder that transformers loaded, with a linear head over its pooled states.

    Args:
        encoder: What `AutoModel` returned; of an encoder-decoder only the encoder is run.
        width: Of the encoder's last states; not always `hidden_size` (OPT).
        outputs: Width of the head.
        pooling: How the states of the tokens become one vector.
        dropout: Share of that vector that is dropped in training.
    """

    def __init__(
        self, encoder: Any, width: int, outputs: int, pooling: Pooling, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs, dtype=encoder.dtype)
        spread = getattr(encoder.config.get_text_config(), "initializer_range", 0.02)
        nn.init.normal_(self.head.weight, std=spread)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> Any:
        """The configuration of the encoder."""
        return self.encoder.config

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Return an object with `logits`, shape [examples, outputs]."""
        pooled = pool(states(self.encoder, inputs), inputs["attention_mask"], self.pooling)
        return SequenceClassifierOutput(logits=self.head(self.dropout(pooled)))

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations of the encoder in the backward pass."""
        enable = getattr(self.encoder, "activation_checkpointing_enable", None)
        # Its name in transformers 5.0, deprecated since.
        (enable or self.encoder.gradient_checkpointing_enable)(activation_checkpointing_kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Do the same under the older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def save_pretrained(self, folder: Path) -> None:
        """Write the encoder as transformers does, and the head beside it."""
        self.encoder.save_pretrained(folder)
        settings = {
            "pooling": self.pooling,
            "dropout": self.dropout.p,
            "outputs": self.head.out_features,
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        save_file({n: t.contiguous() for n, t in self.head.state_dict().items()}, folder / _WEIGHTS)

    def load_head(self, folder: Path) -> None:
        """Read the weights of a head that `save_pretrained` has written."""
        self.head.load_state_dict(load_file(folder / _WEIGHTS))


def saved_head(folder: Path | None) -> dict[str, Any]:
    """Return the settings of the head in a folder; empty if there is none of ours."""
    path = folder / _SETTINGS if folder else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
