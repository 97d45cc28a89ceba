"""Examples without what only the frozen part reads: pictures are neither decoded nor moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine.replay.stubs import nothing

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.components import Example, Examples
    from sft_engine.flow import Batch
    from sft_engine.replay.store import Store


def is_stand_in(value: Tensor) -> bool:
    """Say whether a tensor is one number that stands for all of them."""
    return value.numel() > 1 and not any(value.stride())


class Columns:
    """Everything of a split but the stand-ins: targets and the other inputs, one tensor a name.

    Args:
        examples: Number of examples in the split.
        stand_ins: Inputs that are left out.
    """

    def __init__(self, examples: int, stand_ins: Sequence[str]) -> None:
        self.examples, self.stand_ins = examples, tuple(stand_ins)
        self.columns: dict[str, Tensor] = {}
        self.likes: dict[str, Tensor] = {}
        self.targets: frozenset[str] = frozenset()
        self.usable = True

    def put(self, batch: Batch) -> None:
        """Keep what a batch has; a shape that differs between batches ends it."""
        if not self.usable:
            return
        self.targets = frozenset(batch.targets)
        places = torch.from_numpy(np.asarray(batch.ids, dtype=np.int64))
        for name, value in {**batch.inputs, **batch.targets}.items():
            if name in self.stand_ins:
                self.likes[name] = value.detach()[:1].cpu()
                continue
            column = self.columns.get(name)
            if column is None:
                column = value.new_zeros((self.examples, *value.shape[1:]), device="cpu")
                self.columns[name] = column
            if column.shape[1:] != value.shape[1:] or len(value) != len(places):
                self.usable = False
                return
            column[places] = value.detach().cpu()

    def take(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Return the tensors of examples by name, with stand-ins."""
        places = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        tensors = {name: column.index_select(0, places) for name, column in self.columns.items()}
        shapes = {name: (len(ids), *like.shape[1:]) for name, like in self.likes.items()}
        return tensors | {name: nothing(shapes[name], self.likes[name]) for name in shapes}


class StandIns:
    """Stands for a split's examples while the activations of all of them are kept.

    Args:
        examples: The split's own.
        columns: What else there is of them.
        store: Holds the activations.
        fetch: Fetches real examples.
    """

    def __init__(
        self,
        examples: Examples,
        columns: Columns,
        store: Store,
        fetch: Callable[[list[int]], Batch],
    ) -> None:
        self.examples, self.columns, self.store, self.fetch = examples, columns, store, fetch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        """Return real examples, one by one."""
        return self.examples.__getitems__(ids)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "examples":  # asked for before there is one
            raise AttributeError(name)
        return getattr(self.examples, name)

    def take(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Return the collated tensors of examples, with stand-ins if all activations are there."""
        if not self.store.missing(ids):
            return self.columns.take(ids)
        batch = self.fetch(list(ids))
        return {**batch.inputs, **batch.targets}
