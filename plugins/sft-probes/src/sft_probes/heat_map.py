"""A picture with the scores of its cells: orange speaks for an output, striped blue against it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOR, AGAINST = (230, 97, 1), (33, 102, 172)
STRONGEST = 0.75
"""How much of a pixel's colour is that of the largest score."""
LEAST, MOST = 112, 168
"""Pixels of the longer side: fewer are enlarged, more made smaller."""
STRIPE = 6
"""Pixels from one stripe to the next: the sign is not told by colour alone."""
COLOURS = 96
TOP = 255


def heat_map(given: Tensor, scores: Sequence[float], shape: tuple[int, int], backbone: Any) -> str:
    """Return the picture as a `data:` URI of a PNG; grey where nothing speaks for the output or against it.

    Args:
        given: What enters the model (c, h, w).
        scores: Of each cell, row by row.
        shape: Rows and columns of the cells.
        backbone: Its `pipeline` says how pixels were normalised; else they are stretched to what can be seen.
    """
    from PIL import Image

    grey = Image.fromarray((_grey(given, backbone) * TOP).round().astype(np.uint8))
    grey = grey.resize(_size(*grey.size))
    painted = paint(np.asarray(grey, np.float64), np.reshape(scores, shape))
    # A grey picture in two hues does not need more colours, and is a third of the size.
    picture = Image.fromarray(painted).quantize(COLOURS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def paint(grey: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return uint8 (h, w, 3): grey (h, w) of 0..255 with the colours of the scores (rows, columns) over it."""
    height, width = grey.shape
    down = np.arange(height) * len(scores) // height
    right = np.arange(width) * scores.shape[1] // width
    largest = float(np.abs(scores).max(initial=0.0))
    share = np.nan_to_num(scores / largest if largest > 0 else np.zeros_like(scores))
    place = share[np.ix_(down, right)]
    stripes = (np.arange(height)[:, None] + np.arange(width)) % STRIPE < STRIPE // 2
    weight = STRONGEST * np.abs(place) * np.where((place < 0) & stripes, 0.4, 1.0)
    colour = np.where((place > 0)[..., None], FOR, AGAINST)
    mixed = grey[..., None] * (1 - weight[..., None]) + colour * weight[..., None]
    painted: np.ndarray = np.clip(mixed.round(), 0, TOP).astype(np.uint8)
    return painted


def _grey(given: Tensor, backbone: Any) -> np.ndarray:
    """Return brightness 0..1 (h, w)."""
    pixels = given.detach().float().cpu()
    pipeline: Any = getattr(backbone, "pipeline", None)
    if hasattr(pipeline, "std"):
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (pipeline.mean, pipeline.std))
        pixels = pixels * std + mean
    else:
        least, most = pixels.min(), pixels.max()
        pixels = (pixels - least) / (most - least).clamp_min(1e-12)
    return np.asarray(pixels.mean(dim=0).clamp(0, 1).nan_to_num(0.0), np.float64)


def _size(width: int, height: int) -> tuple[int, int]:
    longer = max(width, height)
    scale = MOST / longer if longer > MOST else -(-LEAST // longer)
    return max(1, round(width * scale)), max(1, round(height * scale))
