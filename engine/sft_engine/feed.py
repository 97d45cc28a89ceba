"""Turns the order into batches: fetches, transforms, encodes and collates, window by window.

The loader is not given to Accelerate to shard: every rank takes its own share of a global window.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sft_engine import order
from sft_engine.errors import SftError
from sft_engine.flow import Batch

if TYPE_CHECKING:
    from sft_engine.components import Backbone, RowTransform, Task
    from sft_engine.flow import Split, View

    Window = list[Batch]

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


@dataclass
class Feed:
    """The training batches of one stream on one rank.

    Args:
        split: The examples.
        task: Collates targets, counts units.
        backbone: Collates inputs, encodes transformed rows.
        batch_size: Examples of a window over all ranks.
        micro_batch_size: Examples of one micro-batch of one rank.
        order_seed: Decides the order.
        noise_seed: Decides the draws of row transforms.
        buckets: Use length buckets where lengths are known.
        rank: This process.
        world: Number of processes.
        workers: Background processes that fetch.
    """

    split: Split
    task: Task
    backbone: Backbone
    batch_size: int
    micro_batch_size: int
    order_seed: int
    noise_seed: int
    buckets: bool = True
    rank: int = 0
    world: int = 1
    workers: int = 0
    _planned: tuple[int, list[Any]] = field(default=(-1, []), repr=False)

    @property
    def windows_per_epoch(self) -> int:
        """Windows, and so optimizer steps, of one epoch."""
        return -(-len(self.split) // self.batch_size)

    def windows(self, epoch: int) -> list[Any]:
        """Return the example ids of every window of an epoch."""
        if self._planned[0] != epoch:
            lengths = getattr(self.split.examples, "lengths", None) if self.buckets else None
            ids = order.windows(
                len(self.split),
                self.batch_size,
                self.order_seed,
                epoch,
                lengths=lengths,
                weights=self.split.weights,
            )
            self._planned = (epoch, ids)
        return self._planned[1]

    def window(self, epoch: int, index: int) -> Window:
        """Fetch one window: as many micro-batches on every rank, on the host."""
        ids = self.windows(epoch)[index]
        shares = order.shares(ids, self.rank, self.world, self.micro_batch_size)
        # Two stand in for an empty share: batch norm cannot train on one example.
        return [self._micro_batch(share, epoch, stand_in=ids[:2]) for share in shares]

    def _micro_batch(self, ids: np.ndarray, epoch: int, stand_in: np.ndarray) -> Batch:
        if len(ids):
            batch = fetch(
                self.split, self.task, self.backbone, ids.tolist(), (self.noise_seed, epoch)
            )
            batch.units = self.task.units(batch)
            return batch
        batch = fetch(self.split, self.task, self.backbone, stand_in.tolist(), (0, epoch))
        batch.units = dict.fromkeys(self.task.units(batch), 0.0)
        batch.real = False
        return batch


def fetch(
    split: Split,
    task: Task,
    backbone: Backbone,
    ids: list[int],
    key: tuple[int, ...],
    transforms: Sequence[RowTransform] | None = None,
) -> Batch:
    """Fetch and collate examples.

    Args:
        split: Where they are.
        task: Collates targets.
        backbone: Collates inputs.
        ids: Which examples.
        key: Seeds the generator of each example, together with its id.
        transforms: Changes of raw rows; None means those of the split.
    """
    transforms = split.transforms if transforms is None else transforms
    if transforms:
        examples = backbone.encode_rows(transformed(split, ids, key, transforms), task)
    elif (take := getattr(split.examples, "take", None)) is not None:
        return _taken(take(ids), task, split, ids)
    else:
        examples = split.examples.__getitems__(ids)
    inputs = backbone.collate(examples)
    return Batch(inputs, task.targets(examples, inputs), ids, split=split.name)


def transformed(
    split: Split, ids: Sequence[int], key: tuple[int, ...], transforms: Sequence[RowTransform]
) -> list[dict[str, Any]]:
    """Return raw rows of a split as transforms change them; what they draw depends on key and id."""
    rows = [dict(row) for row in split.rows.__getitems__(list(ids))]
    for index, row_id in enumerate(ids):
        for position, transform in enumerate(transforms):
            draws = order.generator(*key, row_id, position)
            rows[index] = transform(rows[index], draws)
    return rows


def view_key(view: View) -> tuple[int, ...]:
    """Return what decides, with the id of an example, the draws of a view's transform."""
    return (order.name_key(view.name) if view.seed is None else view.seed,)


def _taken(tensors: dict[str, Any], task: Task, split: Split, ids: list[int]) -> Batch:
    names = split.target_names
    if names is None:
        names = split.target_names = frozenset(task.targets(split.examples.__getitems__(ids), {}))
    targets = {name: tensors.pop(name) for name in names}
    return Batch(inputs=tensors, targets=targets, ids=ids, split=split.name)


def evaluation_batches(
    split: Split,
    task: Task,
    backbone: Backbone,
    view: View,
    batch_size: int,
    starts: Iterable[int],
) -> Iterator[Batch]:
    """Yield the batches of a view of a split that begin at `starts`, multiples of the batch size.

    Batches are made of examples of similar length, longest first, so that a lack of memory shows at
    once. The draws of a view's transform depend on the view's name (or seed) and the example alone:
    they are the same for every model, batch size and number of processes.
    """
    ids = view.examples(split)
    lengths = getattr(split.examples, "lengths", None)
    if lengths is not None:
        ids = ids[np.argsort(-np.asarray(lengths)[ids], kind="stable")]
    transforms = [] if view.transform is None else [view.transform]
    key = view_key(view)
    for start in starts:
        chosen = ids[start : start + batch_size].tolist()
        batch = fetch(split, task, backbone, chosen, key, transforms)
        batch.units = task.units(batch)
        yield batch


class _Windows(Dataset["Window | SftError"]):
    def __init__(self, fetch_window: Callable[[int], Window]) -> None:
        self.fetch_window = fetch_window

    def __getitem__(self, index: int) -> Window | SftError:
        try:
            return self.fetch_window(index)
        except SftError as error:
            return error  # raised here, the loader would wrap the sentence in a traceback


def prefetched(
    fetch_window: Callable[[int], Window], indices: Sequence[int], workers: int
) -> Iterator[Window]:
    """Fetch windows in background processes, which leave signals to the main one.

    Args:
        fetch_window: Fetches the window with an index.
        indices: Which, in which order.
        workers: Number of processes.
    """
    loader: DataLoader[Window | SftError] = DataLoader(
        _Windows(fetch_window),
        sampler=indices,
        batch_size=None,
        num_workers=workers,
        # Without a generator of its own, iter() would draw from torch's global stream.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_ignore_signals,
    )
    # A worker that is still starting must not die of a signal to the group: it inherits the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for window in batches:
        if isinstance(window, SftError):
            raise window
        yield window


def _ignore_signals(_worker: int) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
