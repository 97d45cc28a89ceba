"""Noise for the model's input embeddings; how to find and change them is the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from sft_engine import order
from sft_engine.texts.embeddings import changed, input_embeddings, kept

if TYPE_CHECKING:
    from sft_engine import Batch, Run

__all__ = ["changed", "example_noise", "input_embeddings", "kept"]

Shape = Literal["uniform", "normal"]


def example_noise(
    run: Run, batch: Batch, name: str, length_and_width: Sequence[int], shape: Shape
) -> Tensor:
    """Return noise for the embeddings of a micro-batch (n, length, width), on the run's device.

    It depends on the noise seed, the step, the example and the name alone, so it is the same however a
    window is cut in micro-batches and ranks, and whatever the padding.

    Args:
        run: Knows seed, step and device.
        batch: Its examples.
        name: Of what draws; different names draw independently.
        length_and_width: Of what each example gets.
        shape: `uniform` between -1 and 1, or standard `normal`.
    """
    key = (run.seeds.noise, run.clock.step, order.name_key(name), order.name_key(batch.split))
    rows = [
        _draw(order.generator(*key, each), tuple(length_and_width), shape) for each in batch.ids
    ]
    return torch.from_numpy(np.stack(rows)).to(run.device)


def _draw(draws: np.random.Generator, size: tuple[int, ...], shape: Shape) -> Any:
    # Row by row from one stream: a longer padding does not change what comes before it.
    if shape == "normal":
        return draws.standard_normal(size, dtype=np.float32)
    return 2 * draws.random(size, dtype=np.float32) - 1
