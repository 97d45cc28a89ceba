"""The column `label` of prepared splits: written by a task's `prepare`, collated by its `targets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sft_engine.columns import with_column

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine.components import Example


def collate(examples: list[Example], dtype: torch.dtype) -> dict[str, Tensor]:
    """Stack `label` of the examples; nothing if they have none."""
    if not examples or "label" not in examples[0]:
        return {}
    values = [example["label"] for example in examples]
    if isinstance(values[0], Tensor):
        return {"label": torch.stack(values).to(dtype)}
    return {"label": torch.from_numpy(np.asarray(values)).to(dtype)}


def with_target(rows: Dataset, encoded: np.ndarray) -> Dataset:
    """Replace the column `label`."""
    from datasets import List, Value

    if encoded.ndim == 1:
        return with_column(rows, "label", encoded, Value("int64"))
    return with_column(rows, "label", list(encoded), List(Value("float32")))
