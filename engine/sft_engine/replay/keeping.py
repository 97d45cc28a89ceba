"""The stores of a run's splits: computes what is missing, and makes stubs of what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from sft_engine.columns import row_numbers
from sft_engine.feed import fetch
from sft_engine.replay import decision
from sft_engine.replay.probes import valid_positions
from sft_engine.replay.stand_ins import Columns, StandIns, is_stand_in
from sft_engine.replay.store import Layout, Store, layout_of, packed_groups, unpacked_groups
from sft_engine.replay.stubs import capture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sft_engine.components import Examples
    from sft_engine.devices import Precision
    from sft_engine.flow import Batch, Run, Split
    from sft_engine.replay.cut import Cut
    from sft_engine.replay.shapes import Place
    from sft_engine.replay.shared import SharedTrunk
    from sft_engine.replay.timing import Stopwatch

Key = tuple[str, bool]
"""A split, and whether it is kept for training: evaluation puts its batches together otherwise."""
Rows = tuple[list["Tensor"], list["Tensor | None"]]
"""What is kept of some examples, one tensor a live leaf, and how many rows each example has."""


@dataclass
class Kept:
    """What is kept of one split.

    Args:
        store: The activations.
        columns: What else a batch has, to do without its pictures; None if nothing can be left out.
    """

    store: Store
    columns: Columns | None


@dataclass
class Source:
    """Where real examples come from, though a split may have stand-ins.

    Args:
        run: The run.
    """

    run: Run
    _real: dict[str, Examples] = field(default_factory=dict)
    # A batch with stand-ins may be on its way, even after they are given up.
    stood_in: bool = False  # whether batches may hold stand-ins

    def examples(self, name: str) -> Examples:
        """Return the real examples of a split."""
        return self._real[name] if name in self._real else self.run.splits[name].examples

    def fetched(self, name: str, ids: Sequence[int], *, host: bool = False) -> Batch:
        """Fetch real examples; onto the device, unless they shall stay on the host."""
        run = self.run
        split = replace(run.splits[name], examples=self.examples(name), transforms=[])
        batch = fetch(split, run.task, run.backbone, list(ids), (0,))
        if not host:
            batch.to(run.device)
        return batch

    def make_real(self, batch: Batch) -> None:
        """Fetch the inputs that a batch has only stand-ins of."""
        if self.stood_in and any(map(is_stand_in, batch.inputs.values())):
            batch.inputs = self.fetched(batch.split, batch.ids).inputs

    def stand_in(self, name: str, kept: Kept) -> None:
        """Fetch no more what only the frozen part reads."""
        columns, split = kept.columns, self.run.splits[name]
        if columns is None or not columns.usable or name in self._real:
            return
        self._real[name], self.stood_in = split.examples, True
        split.target_names = columns.targets
        split.examples = StandIns(
            split.examples, columns, kept.store, lambda ids: self.fetched(name, ids, host=True)
        )

    def give_up(self) -> None:
        """Give the splits their own examples back."""
        for name, examples in self._real.items():
            self.run.splits[name].examples = examples
        self._real = {}


@dataclass
class Keeping:
    """All that is kept for one cut.

    Args:
        source: Gives real examples.
        precision: Autocast.
        cut: What is answered.
        fingerprint: Of all that the activations depend on, but for the data.
        data: Content hash of each split.
        restored: Which examples were computed together before a resume, by split.
        shared: What other runs of a study have computed; None for a run by itself.
        shared_key: Of all that their activations depend on.
    """

    source: Source
    precision: Precision
    cut: Cut
    fingerprint: str
    data: Mapping[str, str]
    restored: Mapping[str, dict[str, str]]
    shared: SharedTrunk | None = None
    shared_key: str = ""
    kept: dict[Key, Kept] = field(default_factory=dict)
    _numbers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The run."""
        return self.source.run

    def activations(
        self, batch: Batch, clock: Stopwatch, *, training: bool
    ) -> tuple[list[Tensor], dict[Place, Tensor]]:
        """Return what is kept of a batch, computing first what is missing, and which positions are valid.

        Args:
            batch: On the device.
            clock: Told what took how long, and for how many examples the frozen part ran.
            training: Whether it is a training batch.
        """
        kept = self.kept.get((batch.split, training))
        if kept is None:
            kept = self._begin((batch.split, training), batch)
        elif self.shared is not None:
            self._take_over((batch.split, training), kept, batch.ids)
        groups = kept.store.to_compute(batch.ids)
        for group in groups:
            self._fill((batch.split, training), kept, batch, group, clock)
        if groups and kept.store.is_complete:
            self.source.stand_in(batch.split, kept)
        rows = kept.store.get(batch.ids, self.run.device)
        clock.lap("fetch")
        return rows, self._valid(batch)

    def _take_over(self, key: Key, kept: Kept, ids: Sequence[int]) -> None:
        """Fill in what another run of the study has computed, in memory."""
        if self.shared is None or kept.store.folder is not None or kept.store.is_complete:
            return
        numbers = self._rows_of(key[0])
        self.shared.take((self.shared_key, *key), kept, ids, [numbers[i] for i in ids])
        if kept.store.is_complete:
            self.source.stand_in(key[0], kept)

    def _rows_of(self, name: str) -> list[int]:
        """Return the numbers of a split's rows in the source."""
        if name not in self._numbers:
            self._numbers[name] = row_numbers(self.run.splits[name].rows).tolist()
        return self._numbers[name]

    def _fill(self, key: Key, kept: Kept, batch: Batch, group: list[int], clock: Stopwatch) -> None:
        whole = group == batch.ids and not any(map(is_stand_in, batch.inputs.values()))
        part = batch if whole else self.source.fetched(batch.split, group)
        clock.lap("read")
        clock.computed += len(group)
        rows, lengths = self._computed(part)
        clock.lap("frozen")
        kept.store.put(group, rows, lengths)
        if kept.columns is not None:
            kept.columns.put(part)
        if self.shared is not None and kept.store.folder is None:
            numbers = self._rows_of(key[0])
            own, left_out = [numbers[i] for i in group], self.cut.stand_ins
            described = part if left_out else None
            self.shared.put((self.shared_key, *key), own, rows, lengths, described, left_out)
        clock.lap("keep")

    def _computed(self, batch: Batch) -> Rows:
        """Run the frozen part."""
        run, cut = self.run, self.cut
        # An autocast of its own: a weight cast without gradients must not be found by the pass with.
        with self.precision.autocast():
            found = capture(
                cut.modules, cut.wanted, lambda: run.backbone.forward(run.model, batch.inputs)
            )
        valid = self._valid(batch)
        rows = [
            leaf.rows(value, valid)
            for leaf, value in zip(cut.kept, cut.leaves_of(found), strict=True)
        ]
        lengths = [None if leaf.place is None else valid[leaf.place].sum(1) for leaf in cut.kept]
        return rows, lengths

    def _valid(self, batch: Batch) -> dict[tuple[str, int], Tensor]:
        return valid_positions(batch.inputs, batch.ids, self.source.examples(batch.split))

    # --- stores ----------------------------------------------------------------------------------

    def _begin(self, key: Key, batch: Batch) -> Kept:
        """Make the store of a split."""
        run, split = self.run, self.run.splits[key[0]]
        layouts = [
            layout_of(
                leaf.row_shape(batch.inputs),
                leaf.like.dtype,
                tokens=leaf.place is not None,
                kept=run.plan.train.replay_dtype,
            )
            for leaf in self.cut.kept
        ]
        folder = self._folder(key, self._expected_bytes(split, layouts))
        data = self.data.get(split.name, "")
        store = Store(layouts, len(split), folder, f"{self.fingerprint} {data}")
        if key[1] and key[0] in self.restored and not store.groups:
            store.remember(unpacked_groups(self.restored[key[0]]))
        columns = Columns(len(split), self.cut.stand_ins) if self.cut.stand_ins else None
        if store.present.any():
            columns = None  # files of an earlier process have no targets with them
        kept = self.kept[key] = Kept(store, columns)
        self._take_over(key, kept, range(len(split)))
        return kept

    def _expected_bytes(self, split: Split, layouts: list[Layout]) -> float:
        lengths = getattr(self.source.examples(split.name), "lengths", None)
        mean = 256.0 if lengths is None else float(torch.as_tensor(lengths).double().mean())
        each: float = sum(layout.bytes * (mean if layout.tokens else 1.0) for layout in layouts)
        return each * len(split) * int(self.run.accelerator.num_processes)

    def _folder(self, key: Key, size: float) -> Path | None:
        """Return where a store of this size keeps its files; None for memory."""
        run = self.run
        if decision.place_for(size, run.folder, run.plan.train.replay_memory) == "memory":
            return None
        kind = "train" if key[1] else "evaluation"
        return run.folder / "replay" / f"{key[0]}-{kind}-{run.accelerator.process_index}"

    def groups(self) -> dict[str, Any]:
        """Return which training examples were computed together, by split."""
        training = {key[0]: kept.store.groups for key, kept in self.kept.items() if key[1]}
        return {**self.restored} | {name: packed_groups(each) for name, each in training.items()}

    def commit(self) -> None:
        """Declare what files hold."""
        for kept in self.kept.values():
            kept.store.commit()

    def discard(self) -> None:
        """Forget everything; examples are real again."""
        self.source.give_up()
        for kept in self.kept.values():
            kept.store.discard()
        self.kept = {}
