"""Forgetting: an anchor set, of what the model could do before, is looked at again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sft_engine.diagnosis.outputs import summary
from sft_engine.diagnosis.vitals import plain
from sft_engine.errors import DataError
from sft_engine.feed import evaluation_batches
from sft_engine.flow import View
from sft_engine.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.flow import Run

_PLAIN = View()


class Anchor:
    """Evaluate an anchor set before training and beside the validation split, to see what is forgotten.

    Forgetting is the best accuracy so far less that of now (Chaudhry et al. 2018, "Riemannian Walk for
    Incremental Learning", section 4.1); churn is the share of predictions that differ from those at the start.

    Args:
        split: Split of the recipe's data; name it in `data.splits`, such as `splits = {anchor = "anchor"}`.
        batch_size: Examples of a forward pass.
    """

    def __init__(self, split: str = "anchor", batch_size: int = 64) -> None:
        self.split, self.batch_size = split, batch_size
        self._start: Tensor | None = None

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Make sure that the split is there."""
        if self.split not in run.splits:
            raise DataError(
                f"[[extension]] anchor: there is no split {self.split!r}, the recipe's data has "
                f'{", ".join(run.splits)}; name it in `data.splits`, such as {self.split} = "{self.split}"'
            )

    @hookimpl
    def sft_train_start(self, run: Run) -> None:
        """Keep the predictions of the start."""
        if self._start is None:
            training = run.model.training
            self._look(run)
            run.model.train(training)

    @hookimpl
    def sft_metrics(self, run: Run, view: View) -> None:
        """Look again, beside the validation split."""
        if run.evaluating == "validation" and not view.name and run.clock.step:
            self._look(run)

    def _look(self, run: Run) -> None:
        run.model.eval()
        predictions = self._predictions(run)
        logits = predictions["logits"]
        chosen = logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
        if self._start is None:
            self._start = chosen
        rows = plain(dict(predictions))
        run.record(
            {
                "kind": "diagnostics",
                "of": "anchor",
                "name": self.split,
                "step": run.clock.step,
                "epoch": run.clock.epochs,
                **summary(rows, run.task.head.kind),
                "churn": float((chosen != self._start).float().mean()),
            }
        )

    def _predictions(self, run: Run) -> dict[str, Tensor]:
        """Return what the task keeps of the anchor set; every rank looks at all of it."""
        split = run.splits[self.split]
        starts = range(0, len(split), self.batch_size)
        kept: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for batch in evaluation_batches(
                split, run.task, run.backbone, _PLAIN, self.batch_size, starts
            ):
                batch.to(run.device)
                for name, tensor in run.task.predictions(run.forward(batch), batch).items():
                    kept.setdefault(name, []).append(tensor.detach().cpu())
        return {name: torch.cat(parts) for name, parts in kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the predictions of the start."""
        return {} if self._start is None else {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._start = state.get("start")
