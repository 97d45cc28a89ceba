"""Encoded images: decoded when they are asked for, in threads, and kept while memory allows."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from sft_engine.columns import IMAGE, column_of, is_list
from sft_engine.images.decoding import decode

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from PIL import Image

    from sft_engine.components import Example
    from sft_engine.images.pipeline import Pipeline

ROLE = IMAGE
"""Role of the input column."""

CACHE_BYTES = 1 << 30
"""Most memory that the pixels of one split may take, for them to be kept."""

_MOST_THREADS = 8

_A = TypeVar("_A")
_B = TypeVar("_B")


class ImageExamples:
    """Images of a split, encoded when they are asked for. Implements `components.Examples` with `take`.

    The pixels that the pipeline makes (uint8, before normalisation) are kept in memory if those of all
    examples fit in `cache_bytes`: from the second epoch on nothing is decoded. Background processes
    that were forked share that memory.

    Args:
        rows: A prepared split, with the column `image`.
        pipeline: Makes pixels and normalises.
        task_target: Column of targets, `task.target`; left out where the split has none.
        input_name: Name of the model's input.
        channels_last: Stack in the memory format that convolutions like best.
        cache_bytes: Limit of the kept pixels; 0 keeps none.
    """

    def __init__(
        self,
        rows: Dataset,
        pipeline: Pipeline,
        task_target: str,
        input_name: str = "image",
        *,
        channels_last: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.pipeline = pipeline
        self.input_name = input_name
        self.channels_last = channels_last
        self._images = undecoded(rows).select_columns([IMAGE])
        self._target_name = task_target
        self._targets = (
            target_array(rows, task_target) if task_target in rows.column_names else None
        )
        shape = (pipeline.channels, *pipeline.size)
        size = len(rows) * int(np.prod(shape))
        self._kept = _Kept(len(rows), shape) if 0 < size <= cache_bytes else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        """Return examples: the input as float32 (c, h, w), and the target."""
        images = self.pipeline.normalize(self._pixels(ids))
        examples: list[Example] = [{self.input_name: image} for image in images]
        if self._targets is not None:
            for example, index in zip(examples, ids, strict=True):
                example[self._target_name] = self._targets[index]
        return examples

    def take(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Return the stacked input, float32 (n, c, h, w), and targets (n, ...)."""
        pixels = self._pixels(ids)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        taken = {self.input_name: self.pipeline.normalize(pixels)}
        if self._targets is not None:
            chosen = self._targets[np.asarray(ids, dtype=np.int64)]
            taken[self._target_name] = torch.from_numpy(chosen)
        return taken

    def _pixels(self, ids: Sequence[int]) -> Tensor:
        """Return uint8 (n, c, h, w), a copy."""
        if self._kept is None:
            return torch.stack(self._decoded(ids))
        missing = self._kept.missing(ids)
        if missing:
            self._kept.put(missing, self._decoded(missing))
        return torch.from_numpy(self._kept.get(ids))

    def _decoded(self, ids: Sequence[int]) -> list[Tensor]:
        values = [row[IMAGE] for row in self._images.__getitems__(list(ids))]
        return in_threads(lambda value: self.pipeline.pixels(decode(value)), values)


class _Kept:
    """Pixels of all examples in memory that forked processes share.

    Not `Tensor.share_memory_`: that takes /dev/shm, which is small in containers.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._layout = (count, shape)
        self._allocate()

    def _allocate(self) -> None:
        count, shape = self._layout
        # Anonymous memory is taken page by page, when it is written to.
        buffer = mmap.mmap(-1, count * int(np.prod(shape)))
        self._pixels = np.frombuffer(buffer, dtype=np.uint8).reshape(count, *shape)
        self._there = np.frombuffer(mmap.mmap(-1, count), dtype=np.bool_)

    def missing(self, ids: Sequence[int]) -> list[int]:
        return [i for i in dict.fromkeys(ids) if not self._there[i]]

    def put(self, ids: Sequence[int], pixels: Sequence[Tensor]) -> None:
        for index, each in zip(ids, pixels, strict=True):
            self._pixels[index] = each.numpy()
            self._there[index] = True  # last: another process may be reading

    def get(self, ids: Sequence[int]) -> NDArray[np.uint8]:
        copy: NDArray[np.uint8] = self._pixels[np.asarray(ids, dtype=np.int64)]
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {"_layout": self._layout}  # a process that is no fork keeps its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()


def encode_images(
    rows: Sequence[Mapping[str, Any]],
    pipeline: Pipeline,
    task_target: str,
    input_name: str = "image",
) -> list[Example]:
    """Encode raw rows on the fly, for a backbone's `encode_rows`.

    Args:
        rows: Their `image` is anything that `decode` takes, or a uint8 tensor (c, h, w) whose geometry
            an augmentation has done.
        pipeline: Makes pixels and normalises.
        task_target: Key of the target, kept where a row has it.
        input_name: Name of the model's input.
    """

    def encoded(row: Mapping[str, Any]) -> Example:
        value = row[IMAGE]
        image: Tensor | Image.Image = value if isinstance(value, Tensor) else decode(value)
        target = {task_target: row[task_target]} if task_target in row else {}
        return {input_name: pipeline(image), **target}

    return in_threads(encoded, rows)


def stack_images(
    examples: Sequence[Example], input_name: str = "image", *, channels_last: bool = False
) -> dict[str, Tensor]:
    """Stack the input of examples, float32 (n, c, h, w), for a backbone's `collate`."""
    images = torch.stack([example[input_name] for example in examples])
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return {input_name: images}


# --- columns -------------------------------------------------------------------------------------


def undecoded(rows: Dataset, role: str = IMAGE) -> Dataset:
    """Return the split with an image column of `datasets` as bytes and paths: we decode it ourselves."""
    from datasets import Image

    feature = rows.features.get(role)
    if isinstance(feature, Image) and feature.decode:
        return rows.cast_column(role, Image(decode=False))
    return rows


def target_array(rows: Dataset, name: str) -> NDArray[Any]:
    """Return prepared targets: int64 (n,), or float32 (n, k)."""
    array = column_of(rows, name)
    if is_list(array.type):
        return np.asarray(array.flatten(), dtype=np.float32).reshape(len(rows), -1)
    values = np.asarray(array)
    return values.astype(np.int64 if values.dtype.kind in "iu" else np.float32)


# --- threads -------------------------------------------------------------------------------------

_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: the threads of a pool do not survive a fork."""


def in_threads(work: Callable[[_A], _B], items: Sequence[_A]) -> list[_B]:
    """Apply a function to items in the threads of this process; a loader's worker takes one."""
    if len(items) <= 1 or get_worker_info() is not None or threads() == 1:
        return [work(item) for item in items]
    pool = _pools.get(os.getpid())
    if pool is None:
        pool = _pools[os.getpid()] = ThreadPoolExecutor(threads(), "sft-images")
    return list(pool.map(work, items))


def threads() -> int:
    """Return how many threads decode: one a processor that this process may use, at most eight."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))
