"""What runs of one study have in common: the activations of the same frozen layers for the same examples.

The first run that meets an example computes them; all later ones in the same process take them over, though
they are drawn into another training set and have another place in it. Bits may differ from those of a run by
itself, because the frozen part saw the example among others: by rounding, as at every second epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.flow import Batch
    from sft_engine.replay.cut import Cut
    from sft_engine.replay.decision import Decision
    from sft_engine.replay.keeping import Kept

Key = tuple[str, str, bool]
"""What the activations depend on, the split, and whether they are kept for training."""


@dataclass
class SharedRow:
    """What is kept of one example.

    Args:
        rows: One tensor a live leaf.
        lengths: Rows of it, one a leaf; None for one.
        columns: Everything else that a batch has of it; None if pictures cannot be left out.
    """

    rows: list[Tensor]
    lengths: list[int | None]
    columns: dict[str, Tensor] | None


@dataclass
class SharedTrunk:
    """Activations by source row, and decisions, of the runs of one study in one process.

    Args:
        computed: Examples for which a frozen part ran.
        reused: Examples that were taken over.
    """

    computed: int = 0
    reused: int = 0
    decisions: dict[str, Decision] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    _rows: dict[Key, dict[int, SharedRow]] = field(default_factory=dict)
    _likes: dict[Key, tuple[dict[str, Tensor], frozenset[str]]] = field(default_factory=dict)

    def view(self) -> SharedTrunk:
        """Return the same activations and decisions, with counts of their own."""
        shared = {name: getattr(self, name) for name in ("decisions", "cuts", "_rows", "_likes")}
        return SharedTrunk(**shared)

    @property
    def in_use(self) -> bool:
        """Whether a run has kept something, and none found that it does not pay."""
        return bool(self._rows) and all(decision.on for decision in self.decisions.values())

    def put(
        self,
        key: Key,
        numbers: Sequence[int],
        rows: Sequence[Tensor],
        lengths: Sequence[Tensor | None],
        batch: Batch | None,
        left_out: Sequence[str] = (),
    ) -> None:
        """Keep what was computed of examples.

        Args:
            key: Of the store.
            numbers: Of their rows in the source.
            rows: One tensor a live leaf, all examples of the batch after each other.
            lengths: Rows of each example, one tensor a leaf; None for one row each.
            batch: The same examples; None if nothing but activations is to be kept.
            left_out: Inputs that only the frozen part reads.
        """
        store = self._rows.setdefault(key, {})
        parts = [
            list(torch.split(own.detach().cpu(), [1] * len(numbers) if n is None else n.tolist()))
            for own, n in zip(rows, lengths, strict=True)
        ]
        sizes = [None if n is None else n.tolist() for n in lengths]
        columns = None if batch is None else self._columns(key, batch, left_out)
        for place, number in enumerate(numbers):
            store[int(number)] = SharedRow(
                [part[place] for part in parts],
                [None if each is None else each[place] for each in sizes],
                None if columns is None else {n: c[place : place + 1] for n, c in columns.items()},
            )
        self.computed += len(numbers)

    def _columns(self, key: Key, batch: Batch, left_out: Sequence[str]) -> dict[str, Tensor]:
        inputs = {name: value for name, value in batch.inputs.items() if name not in left_out}
        tensors = {**inputs, **batch.targets}
        self._likes[key] = (
            {name: value.detach()[:1].cpu() for name, value in batch.inputs.items()},
            frozenset(batch.targets),
        )
        return {name: value.detach().cpu() for name, value in tensors.items()}

    def take(self, key: Key, kept: Kept, ids: Sequence[int], numbers: Sequence[int]) -> None:
        """Fill a run's store with those of its examples that are known.

        Args:
            key: Of the store.
            kept: The run's own.
            ids: Examples of the run's split.
            numbers: Of their rows in the source.
        """
        store = self._rows.get(key)
        if not store:
            return
        absent = ~kept.store.present[np.asarray(ids, dtype=np.int64)]
        known = [
            (i, store[n]) for i, n, a in zip(ids, numbers, absent, strict=True) if a and n in store
        ]
        if not known:
            return
        places, found = [i for i, _ in known], [row for _, row in known]
        rows = [torch.cat(leaf) for leaf in zip(*(each.rows for each in found), strict=True)]
        lengths = [
            None if sizes[0] is None else torch.tensor(sizes)
            for sizes in zip(*(each.lengths for each in found), strict=True)
        ]
        kept.store.put(places, rows, lengths)
        if kept.columns is not None:
            self._fill_columns(key, kept, places, found)
        self.reused += len(places)

    def _fill_columns(
        self, key: Key, kept: Kept, places: list[int], found: list[SharedRow]
    ) -> None:
        from sft_engine.flow import Batch

        columns = [each.columns for each in found]
        if kept.columns is None or any(each is None for each in columns):
            kept.columns = None
            return
        known: list[Mapping[str, Tensor]] = [each for each in columns if each is not None]
        if len({tuple(v.shape for v in each.values()) for each in known}) > 1:
            kept.columns.usable = False
            return
        likes, targets = self._likes[key]
        left = kept.columns.stand_ins
        joined = {n: torch.cat([each[n] for each in known]) for n in known[0] if n not in left}
        inputs = {n: joined[n] if n in joined else likes[n] for n in likes}
        kept.columns.put(Batch(inputs, {n: joined[n] for n in targets}, places))


_CURRENT: ContextVar[SharedTrunk | None] = ContextVar("shared_trunk", default=None)


def current() -> SharedTrunk | None:
    """Return what the runs that begin now have in common; None for a run by itself."""
    return _CURRENT.get()


@contextmanager
def sharing(trunk: SharedTrunk | None) -> Iterator[None]:
    """Let the runs that begin in this context share activations."""
    token = _CURRENT.set(trunk)
    try:
        yield
    finally:
        _CURRENT.reset(token)
