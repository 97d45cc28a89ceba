"""Encoded recordings: decoded when they are asked for, and kept while memory allows."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.audio.checking import checked
from sft_engine.audio.decoding import fitted
from sft_engine.columns import AUDIO, AUDIO_FRAMES, AUDIO_RATE, column_of

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine.components import Example

    Encode = Callable[[NDArray[np.float32]], Example]

CACHE_BYTES = 1 << 30
"""Most memory that the samples of one split may take, for them to be kept."""


class AudioExamples:
    """Recordings of a split, encoded when they are asked for. Implements `components.Examples`.

    Samples at the model's rate are kept in memory if those of all examples fit in `cache_bytes`: from
    the second epoch on nothing is decoded. Background processes that were forked share that memory.

    Args:
        rows: A prepared split, with the column `audio`.
        target: Column of targets, left out where the split has none.
        rate: Samples a second that the model takes.
        seconds: What is longer is cut.
        encode: Makes the model's inputs of samples, float32 (samples,).
        bucketed: Whether the inputs are the longer the longer a recording is; `lengths` is for those.
        cache_bytes: Limit of the kept samples; 0 keeps none.

    Attributes:
        lengths: Samples of each example at that rate, shape (examples,); None where none is longer.
        truncated: Whether an example was cut, shape (examples,).
    """

    def __init__(
        self,
        rows: Dataset,
        target: str,
        rate: int,
        seconds: float,
        encode: Encode,
        *,
        bucketed: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        rows = checked(rows, "", skip=False)
        self.rate, self.seconds, self.encode = rate, seconds, encode
        self._sounds = rows.select_columns([AUDIO])
        self._targets = {target: rows[target][:]} if target in rows.column_names else {}
        frames, rates = (
            np.asarray(column_of(rows, name), dtype=np.int64) for name in (AUDIO_FRAMES, AUDIO_RATE)
        )
        self.truncated: NDArray[np.bool_] = frames > seconds * rates
        samples = lengths_at(frames, rates, rate, seconds)
        self.lengths = samples if bucketed else None
        size = int(samples.sum()) * np.dtype(np.float32).itemsize
        self._kept = _Kept(samples) if 0 < size <= cache_bytes else None

    def __len__(self) -> int:
        return len(self._sounds)

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        """Return examples: the inputs that `encode` makes, and the target."""
        return [
            self.encode(self._samples(int(i)))
            | {name: column[i] for name, column in self._targets.items()}
            for i in ids
        ]

    def _samples(self, index: int) -> NDArray[np.float32]:
        if self._kept is not None and self._kept.has(index):
            return self._kept.get(index)
        samples = fitted(self._sounds[index][AUDIO], self.rate, self.seconds)
        if self._kept is not None:
            self._kept.put(index, samples)
        return samples


def lengths_at(
    frames: NDArray[np.int64], rates: NDArray[np.int64], rate: int, seconds: float
) -> NDArray[np.int64]:
    """Return how many samples each recording has once it is cut and resampled, as `fitted` does."""
    cut = np.where(seconds * rates >= frames, frames, np.ceil(seconds * rates))
    common = np.gcd(rates, rate)
    samples: NDArray[np.int64] = -(-cut.astype(np.int64) * (rate // common) // (rates // common))
    return samples


class _Kept:
    """Samples of all examples, one after the other, in memory that forked processes share."""

    def __init__(self, samples: NDArray[np.int64]) -> None:
        self._samples = samples
        self._allocate()

    def _allocate(self) -> None:
        self._offsets = np.cumsum([0, *self._samples])
        # Anonymous memory is taken page by page, when it is written to.
        buffer = mmap.mmap(-1, int(self._offsets[-1]) * np.dtype(np.float32).itemsize)
        self._values = np.frombuffer(buffer, dtype=np.float32)
        self._there = np.frombuffer(mmap.mmap(-1, len(self._samples)), dtype=np.bool_)

    def has(self, index: int) -> bool:
        return bool(self._there[index])

    def put(self, index: int, samples: NDArray[np.float32]) -> None:
        self._values[self._offsets[index] : self._offsets[index + 1]] = samples
        self._there[index] = True  # last: another process may be reading

    def get(self, index: int) -> NDArray[np.float32]:
        return self._values[self._offsets[index] : self._offsets[index + 1]].copy()

    def __getstate__(self) -> dict[str, Any]:
        return {"_samples": self._samples}  # a process that is no fork keeps its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()
