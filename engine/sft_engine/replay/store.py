"""Where activations are kept, example by example: in memory, or in files that are mapped into it.

    store.json          what the files hold, written last: without it, or if it differs, they count for
                        nothing
    column-0.bin        the rows of the first live leaf, as they are in memory
    ...

A file is never more than a copy: whoever finds none computes the activations again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from sft_engine.records import remove, write_json
from sft_engine.replay.trace import Refused

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["exact", "fp16", "bf16"]

FORMAT = 1
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_MARKER = "store.json"


@dataclass(frozen=True)
class Layout:
    """What is kept of one leaf.

    Args:
        shape: Of a row; of a token, where each example has its own number of them.
        dtype: As the model computes it.
        kept: As it is kept.
        tokens: Whether each example has its own number of rows.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kept: torch.dtype
    tokens: bool

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return prod(self.shape) * self.kept.itemsize


def layout_of(shape: Sequence[int], dtype: torch.dtype, *, tokens: bool, kept: Kept) -> Layout:
    """Return the layout for rows of this shape and type."""
    wide = dtype in (torch.float32, torch.float64)
    return Layout(tuple(shape), dtype, _HALVES[kept] if kept != "exact" and wide else dtype, tokens)


class Column:
    """The rows of one leaf.

    Args:
        layout: What a row is.
        examples: Number of examples.
        path: Of the file; None keeps them in memory.
    """

    def __init__(self, layout: Layout, examples: int, path: Path | None) -> None:
        self.layout, self.path = layout, path
        self.used = 0
        self.capacity = 0
        self.data = torch.empty(0, dtype=layout.kept)
        self.starts = np.zeros(examples, dtype=np.int64)
        self.lengths = np.zeros(examples, dtype=np.int64)
        self._reserve(64 * examples if layout.tokens and path else examples)

    def _reserve(self, rows: int) -> None:
        """Make room; files are sparse, so that room alone takes none."""
        number = rows * prod(self.layout.shape)
        if self.path is None:
            data = torch.empty(number, dtype=self.layout.kept)
            data[: self.data.numel()] = self.data.view(-1)
        else:
            data = torch.from_file(
                str(self.path), shared=True, size=max(number, 1), dtype=self.layout.kept
            )[:number]
        self.data = data.view(rows, *self.layout.shape)
        self.capacity = rows

    def put(self, ids: np.ndarray, rows: Tensor, lengths: np.ndarray) -> None:
        """Keep the rows of examples, which follow each other.

        Raises:
            Refused: a number is too large for the kept type.
        """
        if self.used + len(rows) > self.capacity:
            self._reserve(max(2 * self.capacity, self.used + len(rows)))
        target = self.data[self.used : self.used + len(rows)]
        target.copy_(rows)
        if self.layout.kept is torch.float16 and not bool(target.isfinite().all()):
            raise Refused("an activation is too large for fp16: set `train.replay_dtype` to bf16")
        self.starts[ids] = self.used + np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.lengths[ids] = lengths
        self.used += len(rows)

    def get(self, ids: np.ndarray, device: torch.device) -> Tensor:
        """Return a copy of the rows of these examples, as the model computes them."""
        index = self.starts[ids]
        if self.layout.tokens:
            lengths = self.lengths[ids]
            ends = np.cumsum(lengths)
            index = np.repeat(index - (ends - lengths), lengths) + np.arange(ends[-1])
        rows = self.data.index_select(0, torch.from_numpy(index))
        return rows.to(device=device, dtype=self.layout.dtype)


class Store:
    """The activations of one split.

    Args:
        layouts: One a live leaf.
        examples: Number of examples in the split.
        folder: Where the files go; None keeps all in memory.
        fingerprint: Of everything that the activations depend on.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        examples: int,
        folder: Path | None = None,
        fingerprint: str = "",
    ) -> None:
        self.layouts = list(layouts)
        self.folder, self.fingerprint = folder, fingerprint
        self.present = np.zeros(examples, dtype=np.bool_)
        self.groups: list[list[int]] = []
        self._group_of: dict[int, int] = {}
        committed = self._committed() if folder else None
        if folder and committed is None:
            remove([folder])
            folder.mkdir(parents=True)
        self.columns = [
            Column(layout, examples, folder / f"column-{i}.bin" if folder else None)
            for i, layout in enumerate(self.layouts)
        ]
        if committed is not None:
            self._take_over(committed)

    def __len__(self) -> int:
        return len(self.present)

    @property
    def is_complete(self) -> bool:
        """Whether every example is there."""
        return bool(self.present.all())

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return sum(column.used * column.layout.bytes for column in self.columns)

    def missing(self, ids: Sequence[int]) -> list[int]:
        """Return which of these are not there, in order and each once."""
        absent = np.asarray(ids)[~self.present[np.asarray(ids)]]
        return list(dict.fromkeys(absent.tolist()))

    def remember(self, groups: Sequence[Sequence[int]]) -> None:
        """Take over which examples were computed together, of a store that is no longer there."""
        for group in groups:
            self._note(list(group))

    def _note(self, group: list[int]) -> None:
        self._group_of |= dict.fromkeys(group, len(self.groups))
        self.groups.append(group)

    def to_compute(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the groups of examples to compute together before `get` can be asked for these.

        An example is always computed among the same others, so that its bits are always the same:
        the missing ones of these together, or those that it was computed with before.
        """
        absent = self.missing(ids)
        known = dict.fromkeys(self._group_of[i] for i in absent if i in self._group_of)
        new = [i for i in absent if i not in self._group_of]
        return [self.groups[index] for index in known] + ([new] if new else [])

    def put(
        self, ids: Sequence[int], rows: Sequence[Tensor], lengths: Sequence[Tensor | None]
    ) -> None:
        """Keep the activations of examples.

        Args:
            ids: Which examples, each once.
            rows: One tensor a leaf.
            lengths: Rows of each example, one tensor a leaf; None for one row each.
        """
        places = np.asarray(ids, dtype=np.int64)
        for column, own, numbers in zip(self.columns, rows, lengths, strict=True):
            each = np.ones_like(places) if numbers is None else numbers.cpu().numpy()
            column.put(places, own, each)
        self.present[places] = True
        if any(i not in self._group_of for i in ids):
            self._note(list(ids))

    def get(self, ids: Sequence[int], device: torch.device) -> list[Tensor]:
        """Return copies of the activations of examples, one tensor a leaf."""
        places = np.asarray(ids, dtype=np.int64)
        return [column.get(places, device) for column in self.columns]

    # --- on disk ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Declare what the files hold now; in memory, nothing happens."""
        if self.folder is None:
            return
        for column in self.columns:
            _flush(column)
        write_json(self.folder / _MARKER, {**self._head(), **self._body()})

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "examples": len(self.present),
            "layouts": [
                [list(each.shape), str(each.dtype), str(each.kept), each.tokens]
                for each in self.layouts
            ],
        }

    def _body(self) -> dict[str, Any]:
        return {
            "present": _text(np.packbits(self.present)),
            "groups": packed_groups(self.groups),
            "columns": [
                {"used": c.used, "starts": _text(c.starts), "lengths": _text(c.lengths)}
                for c in self.columns
            ],
        }

    def _committed(self) -> dict[str, Any] | None:
        """Return the marker, if it and the files are of this store and whole."""
        assert self.folder is not None
        try:
            marker: dict[str, Any] = json.loads((self.folder / _MARKER).read_text("utf-8"))
            whole = all(
                (self.folder / f"column-{i}.bin").stat().st_size >= column["used"] * layout.bytes
                for i, (column, layout) in enumerate(
                    zip(marker["columns"], self.layouts, strict=True)
                )
            )
            same = all(marker[name] == value for name, value in self._head().items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return marker if whole and same else None

    def _take_over(self, marker: dict[str, Any]) -> None:
        bits = np.unpackbits(_array(marker["present"], np.uint8))[: len(self.present)]
        self.present = bits.astype(np.bool_)
        self.remember(unpacked_groups(marker["groups"]))
        for column, saved in zip(self.columns, marker["columns"], strict=True):
            column.used = saved["used"]
            column.starts = _array(saved["starts"], np.int64)
            column.lengths = _array(saved["lengths"], np.int64)
            if column.used > column.capacity:
                column._reserve(column.used)  # noqa: SLF001

    def discard(self) -> None:
        """Delete the files and let go of the memory."""
        self.columns = []
        if self.folder is not None:
            remove([self.folder])


def _flush(column: Column) -> None:
    """Write a mapped file to disk."""
    import os

    assert column.path is not None
    descriptor = os.open(column.path, os.O_RDWR)
    try:
        os.fsync(descriptor)  # a shared mapping is the file's own pages
    finally:
        os.close(descriptor)


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _array(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).copy()


def packed_groups(groups: Sequence[Sequence[int]]) -> dict[str, str]:
    """Return lists of ids as two texts."""
    sizes = np.asarray([len(group) for group in groups], dtype=np.int64)
    ids = np.asarray([i for group in groups for i in group], dtype=np.int64)
    return {"sizes": _text(sizes), "ids": _text(ids)}


def unpacked_groups(packed: dict[str, str]) -> list[list[int]]:
    """Return what `packed_groups` was given."""
    sizes, ids = _array(packed["sizes"], np.int64), _array(packed["ids"], np.int64)
    return [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])] if len(sizes) else []
