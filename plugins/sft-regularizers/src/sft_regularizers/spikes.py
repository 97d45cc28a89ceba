"""Spike guard: a step whose gradient is far out of line is left out; weights that went bad are put back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt

from sft_engine import Action, Capabilities, Verdict, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Run


def spike(norm: float, before: Sequence[float], factor: float, least: int) -> str:
    """Return what is wrong with a gradient norm, or nothing.

    Args:
        norm: Of this step.
        before: Of the latest good steps.
        factor: Times their median is a spike.
        least: Good steps before anything but NaN and infinity is judged.
    """
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    if len(before) < least:
        return ""
    usual = median(before)
    if usual > 0 and norm > factor * usual:
        return f"the gradient norm {norm:.3g} is {norm / usual:.3g} times the usual {usual:.3g}"
    return ""


class SpikeGuard:
    """Leave out steps whose gradient is a spike; after several in a row put the weights back; go on.

    What is left out is recorded with its examples. The usual norm is the median of the latest good steps.

    Args:
        factor: A norm of more than so many times the usual one is a spike.
        memory: Good steps that the usual norm is taken from.
        least: Good steps before anything but NaN and infinity is judged.
        patience: Spikes in a row after which weights, optimizer and averages return to the latest
            snapshot, which is at most `train.log_every` steps old.
        budget: Times that weights may be put back before the run stops.
    """

    capabilities = Capabilities(rolls_back=True)

    def __init__(
        self,
        factor: Annotated[float, Gt(1)] = 10.0,
        memory: Annotated[int, Gt(0)] = 50,
        least: Annotated[int, Gt(0)] = 10,
        patience: Annotated[int, Gt(0)] = 3,
        budget: Annotated[int, Ge(0)] = 5,
    ) -> None:
        self.factor, self.memory, self.least = factor, memory, least
        self.patience, self.budget = patience, budget
        self._norms: list[float] = []
        self._in_a_row = 0
        self._put_back = 0

    @hookimpl
    def sft_step_verdict(self, run: Run, grad_norm: Tensor) -> Verdict | None:  # noqa: ARG002
        """Judge the norm before clipping."""
        norm = float(grad_norm.item())
        wrong = spike(norm, self._norms, self.factor, self.least)
        if not wrong:
            self._norms = [*self._norms, norm][-self.memory :]
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        return self._answer(wrong)

    def _answer(self, wrong: str) -> Verdict:
        if self._in_a_row < self.patience:
            return Verdict(Action.SKIP, wrong)
        row = f"{wrong}, the spike number {self._in_a_row} in a row"
        if self._put_back >= self.budget:
            return Verdict(
                Action.STOP,
                f"{row}, and weights were put back {self._put_back} times (`budget` of spike-guard): lower "
                "`optimizer.lr`, or look at the examples in the records of kind `verdict`",
            )
        self._put_back += 1
        self._in_a_row = 0
        return Verdict(Action.ROLL_BACK, row)

    def state_dict(self) -> dict[str, Any]:
        """Return the latest norms and what was spent of the budget."""
        return {"norms": self._norms, "row": self._in_a_row, "put_back": self._put_back}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; what was spent stays spent when the weights are put back."""
        self._norms, self._in_a_row = list(state["norms"]), state["row"]
        self._put_back = max(self._put_back, state["put_back"])
