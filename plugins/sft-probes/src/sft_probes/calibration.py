"""The probe `calibration`: whether probabilities mean what they say, and temperature scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import hookimpl, ranks, sections
from sft_engine.devices import choose_precision
from sft_engine.reporting.reliability import diagram
from sft_probes.asking import batch_size
from sft_probes.calibration_figures import MOST, Calibration, calibration, fit_temperature
from sft_probes.measures import Measure, known

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine import Run, Split, View
    from sft_engine.sections import Block

FITTED = "validation"
"""The split on which the temperature is fitted."""

NAMES = {
    "ece": "expected calibration error",
    "adaptive_ece": "the same, bins of equal mass",
    "classwise_ece": "the same, mean over classes",
    "mce": "maximum calibration error",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}

Mark = tuple[tuple[float, float], ...]


def weights_mark(model: nn.Module) -> Mark:
    """Return sum and norm of each weight and buffer: equal as long as nothing was trained or loaded."""
    tensors = (getattr(each, "to_local", lambda each=each: each)() for each in _floats(model))
    return tuple(
        (
            float(each.sum(dtype=torch.float64)),
            float(torch.linalg.vector_norm(each, dtype=torch.float64)),
        )
        for each in tensors
    )


def _floats(model: nn.Module) -> list[Tensor]:
    everything = [*model.parameters(), *model.buffers()]
    return [each.detach() for each in everything if each.is_floating_point()]


def _predicted(run: Run) -> Mapping[str, Tensor]:
    """Predict the validation split, in the midst of the evaluation of another one."""
    from sft_engine.evaluation import predict_split

    precision = choose_precision(run.plan.train, run.accelerator, run.model)
    evaluating = run.evaluating
    try:
        return predict_split(run, FITTED, precision, batch_size=batch_size(run))
    finally:
        run.evaluating = evaluating


@dataclass(frozen=True)
class Seen:
    """What the model said of the validation split, and with which weights."""

    mark: Mark
    predictions: Mapping[str, Tensor]


class CalibrationProbe(Measure):
    """Compare probabilities with how often they come true; fit a temperature on the validation split.

    Needs no pass of its own over the split. The temperature is fitted to what the model said of the
    validation split when its weights were those that are kept; if that is not known any more, as after a
    resume, the validation split is predicted once more.

    Args:
        split: Which split is looked at.
    """

    title = "Calibration"

    def __init__(self, split: str = "test") -> None:
        super().__init__(split)
        self.splits: tuple[str, ...] = (split,)
        self.temperature: float | None = None
        self.fitted_on = 0
        self._latest: Seen | None = None
        self._at_best: Seen | None = None
        self._best: dict[str, Any] | None = None

    def prepare(self, run: Run, data: Split) -> None:
        """Say which splits are needed."""
        super().prepare(run, data)
        there = FITTED in run.splits and self.split != FITTED
        self.splits = (FITTED, self.split) if there else (self.split,)

    @hookimpl
    def sft_metrics(
        self, run: Run, view: View, values: dict[str, float], predictions: Mapping[str, Tensor]
    ) -> None:
        """Keep the predictions of the validation split, too."""
        if run.evaluating == FITTED != self.split and self.ready and not view.name:
            self._keep(run, values, predictions)
        super().sft_metrics(run, view, values, predictions)

    def _keep(self, run: Run, values: dict[str, float], predictions: Mapping[str, Tensor]) -> None:
        """Keep the latest predictions, and those of the weights that will probably be selected."""
        from sft_engine.metrics import direction_of
        from sft_engine.training import best_metric, is_better

        self._latest = Seen(weights_mark(run.model), predictions)
        metric, direction = best_metric(run), run.plan.checkpoint.direction
        value = values.get(metric)
        if value is None:
            return
        if is_better(value, self._best, direction_of(metric) if direction == "auto" else direction):
            self._best, self._at_best = {"value": value}, self._latest

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Fit the temperature, on all ranks."""
        super().collect(run, view, values, predictions)
        self.temperature = None
        held_out = self._validation(run)
        if held_out is None or "label" not in held_out:
            return
        on = known(held_out, run.task.head)
        self.fitted_on = len(on)
        if len(on):
            self.temperature = fit_temperature(on.logits, on.truth, several=on.several)

    def _validation(self, run: Run) -> Mapping[str, Tensor] | None:
        """Return what the model as it is now says of the validation split; None if there is none."""
        if len(self.splits) == 1:
            return None
        mark = weights_mark(run.model)
        for seen in (self._latest, self._at_best):
            same = seen is not None and seen.mark == mark
            if all(ranks.everyones(run.accelerator, same)):
                assert seen is not None
                return seen.predictions
        return None if run.reopened else _predicted(run)

    @property
    def before(self) -> Calibration:
        """The figures of the model as it is."""
        return calibration(self.found.logits, self.found.truth, several=self.found.several)

    @property
    def after(self) -> Calibration | None:
        """The figures at the fitted temperature."""
        if self.temperature is None:
            return None
        scaled = self.found.logits / self.temperature
        return calibration(scaled, self.found.truth, several=self.found.several)

    def summary(self, run: Run) -> str:  # noqa: ARG002 - contract
        """Say how large the error is, and what a temperature makes of it."""
        sentence = f"Expected calibration error {self.before.ece:.3f} over 15 bins"
        after = self.after
        if after is None:
            return f"{sentence}."
        return (
            f"{sentence}; {after.ece:.3f} at temperature {self.temperature:.3g}, which was fitted on the "
            "validation split."
        )

    def blocks(self, run: Run) -> list[Block]:  # noqa: ARG002 - contract
        """Return the reliability diagram, how many examples each bin holds, and the table."""
        before, after = self.before, self.after
        columns = ["measure", "as trained"]
        rows: list[list[Any]] = [[NAMES[name], value] for name, value in before.figures.items()]
        if after is not None:
            columns.append(f"at temperature {self.temperature:.4g}")
            for row, value in zip(rows, after.figures.values(), strict=True):
                row.append(value)
        table = sections.table("Calibration", columns, rows, note=self._note())
        return [*diagram({"bins": before.bins}), table]

    def _note(self) -> str:
        one = "The Brier score goes from 0 to 2 (the sum over classes); the binary form would from 0 to 1."
        many = (
            "Each pair of example and label is a case of its own, with the probability of the label; so the "
            "Brier score goes from 0 to 1."
        )
        if self.temperature is not None:
            fitted = (
                f"Temperature: one scalar that divides all logits, fitted on {self.fitted_on} examples of "
                "the validation split; it changes no prediction."
            )
            if abs(math.log(self.temperature)) > MOST - 0.001:
                fitted += " It lies at the edge of what was searched: on that split, the more extreme the better."
        elif self.split == FITTED:
            fitted = "No temperature: it would be fitted on the very examples that it is judged on."
        else:
            fitted = "No temperature: there is no validation split to fit it on."
        return f"{self.examples_note} 15 bins. {many if self.found.several else one} {fitted}"

    def facts(self, run: Run) -> dict[str, Any]:  # noqa: ARG002 - contract
        """Return all figures, before and after."""
        before, after = self.before, self.after
        return {
            **self.counted(),
            **before.figures,
            "bins": before.bins,
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "after": None if after is None else after.figures,
        }
