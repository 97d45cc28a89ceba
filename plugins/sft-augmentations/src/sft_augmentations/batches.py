"""What all augmentations of micro-batches have in common: until when, and not twice."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from sft_engine import Capabilities, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Batch, Run


class BatchAugmentation:
    """Changes micro-batches in training; a subclass says how, in `change`.

    What is drawn comes from torch's generator of the CPU, which the engine seeds for each micro-batch by
    position: a resumed run draws the same, on any device.
    """

    changes_labels = False

    def __init__(self, until: float) -> None:
        self.until = until
        self._seen: list[tuple[Batch, list[weakref.ref[Tensor]]]] = []

    @property
    def capabilities(self) -> Capabilities:
        """Without strength nothing is read, so that replay may stand in for frozen layers."""
        return Capabilities(changes_labels=self.changes_labels, replayable=not self.effective)

    @property
    def effective(self) -> bool:
        """Whether the options can change any batch."""
        return self.until > 0

    def change(self, run: Run, batch: Batch, *, again: bool) -> None:
        """Change a batch in place.

        Args:
            run: The run.
            batch: The batch.
            again: Only draw what was drawn for it before: it has been changed already.
        """
        raise NotImplementedError

    @hookimpl
    def sft_step_start(self) -> None:
        """Forget the batches of the last window."""
        self._seen.clear()

    @hookimpl
    def sft_batch(self, run: Run, batch: Batch) -> None:
        """Change the batch, unless it is too late in the run.

        A component that computes the gradients of a window again (`run.replay_window`) shows it the same
        batches, changed as they are. The draws are repeated, so that dropout sees the same numbers.
        """
        if self.effective and run.clock.progress < self.until:
            self.change(run, batch, again=self._was_changed(batch))

    def _was_changed(self, batch: Batch) -> bool:
        """Whether the batch was here before and still is as this component left it."""
        tensors = [*batch.inputs.values(), *batch.targets.values()]
        for seen, originals in self._seen:
            if seen is batch:
                return any(old() is not new for old, new in zip(originals, tensors, strict=False))
        self._seen.append((batch, [weakref.ref(tensor) for tensor in tensors]))
        return False
