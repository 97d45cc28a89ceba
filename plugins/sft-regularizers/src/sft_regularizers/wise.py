"""WiSE-FT: between the weights of the start and those of the end, chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sft_engine import RecipeError, View, hookimpl
from sft_engine.feed import evaluation_batches
from sft_engine.metrics import direction_of
from sft_regularizers.averages import Tensors, fill_, tensors_of
from sft_regularizers.selection import beside, snapshot
from sft_regularizers.statistics import recompute_statistics

if TYPE_CHECKING:
    from sft_engine import Run

AUTO = "auto"


@torch.no_grad()
def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> Tensors:
    """Return `(1 - alpha) * start + alpha * end` (Wortsman et al. 2021, equation 1).

    Both ends come out bit for bit; what is not floating point is that of the end.
    """
    return {
        name: torch.lerp(start[name], last, alpha) if last.is_floating_point() else last.clone()
        for name, last in end.items()
    }


def best_of(values: Sequence[tuple[float, float]], direction: str) -> float:
    """Return the alpha with the best value; among equals the largest, NaN never.

    Args:
        values: Pairs of alpha and what was measured.
        direction: `max` or `min`: which way is better.
    """
    sign = 1.0 if direction == "max" else -1.0
    sound = [(sign * value, alpha) for alpha, value in values if value == value]  # noqa: PLR0124
    return max(sound)[1] if sound else max(alpha for alpha, _ in values)


class WiseFT:
    """End between the start and the end of training, where validation is best.

    The start needs a head that says something: that of a zero-shot model, or one that was trained first
    on frozen features.

    Args:
        alphas: Shares of the trained weights to try, 0 to 1; with one alone, validation is not needed.
        metric: Of the validation split; `auto` is the task's main metric.
    """

    def __init__(
        self,
        alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        metric: str = AUTO,
    ) -> None:
        self.alphas, self.metric = tuple(alphas), metric
        self._start: Tensors = {}
        self._own: Tensors = {}
        self._sweep: list[tuple[float, float]] = []
        self._chosen: float | None = None

    def check(self) -> None:
        """Refuse shares that are none.

        Raises:
            RecipeError: there is no share, or one outside 0 to 1.
        """
        wrong = [alpha for alpha in self.alphas if not 0 <= alpha <= 1]
        if wrong or not self.alphas:
            found = f"{wrong[0]:g}" if wrong else "none"
            raise RecipeError(f"`alphas` of wise-ft: found {found}; allowed: numbers from 0 to 1")

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Remember the start, unless a checkpoint holds it."""
        if len(self.alphas) > 1 and "validation" not in run.splits:
            raise RecipeError(
                "wise-ft chooses on the validation split, and the data has none: set `data.validation`, or "
                "give one number in `alphas`"
            )
        self._own = tensors_of(run.model)
        self._start = beside(self._start or snapshot(self._own), self._own)

    @hookimpl
    def sft_train_end(self, run: Run) -> None:
        """Try every share, and keep the best."""
        end = snapshot(self._own)
        self._sweep = []
        for alpha in self.alphas if len(self.alphas) > 1 else ():
            self._set(run, end, alpha)
            self._sweep.append((alpha, self._measure(run)))
            run.record({"kind": "wise-ft", "alpha": alpha, "value": self._sweep[-1][1]})
        chosen = best_of(self._sweep, self._direction(run)) if self._sweep else self.alphas[0]
        self._chosen = chosen
        self._set(run, end, chosen)

    def _set(self, run: Run, end: Tensors, alpha: float) -> None:
        fill_(self._own, between(self._start, end, alpha))
        recompute_statistics(run, run.model)

    def _name(self, run: Run) -> str:
        return run.task.main_metric if self.metric == AUTO else self.metric

    def _direction(self, run: Run) -> str:
        return str(direction_of(self._name(run)))

    @torch.no_grad()
    def _measure(self, run: Run) -> float:
        """Return the metric of the current weights; every rank looks at the whole split."""
        run.model.eval()
        split = run.splits["validation"]
        size = run.plan.evaluation.batch_size or run.plan.train.batch_size
        kept: dict[str, list[Tensor]] = {}
        starts = range(0, len(split), size)
        for batch in evaluation_batches(split, run.task, run.backbone, View(), size, starts):
            batch.to(run.device)
            for name, tensor in run.task.predictions(run.forward(batch), batch).items():
                kept.setdefault(name, []).append(tensor.cpu())
        values = run.task.metrics({name: torch.cat(each) for name, each in kept.items()}, ())
        if self._name(run) not in values:
            raise RecipeError(
                f"`metric` of wise-ft: found {self._name(run)!r}, the validation split has "
                f"{', '.join(values)}"
            )
        return float(values[self._name(run)])

    @hookimpl
    def sft_report(self, report: dict[str, Any]) -> None:
        """Show the sweep."""
        sweep = [{"alpha": alpha, "value": value} for alpha, value in self._sweep]
        report["wise-ft"] = {"alpha": self._chosen, "sweep": sweep}

    def state_dict(self) -> dict[str, Any]:
        """Return the start."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._start = beside(state["start"], self._own or state["start"])
