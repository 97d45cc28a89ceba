"""Explanations of single answers, `[explanation]` of a recipe: which words, cells or columns they are owed to.

An output is explained before softmax, in the precision of the weights without autocast. captum (extra `explain`)
computes it; one input at a time, so that padding and the batch play no part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Gt

from sft_engine import Explained, RecipeError
from sft_probes.asking import require_whole_model
from sft_probes.attribution import Subject, input_x_gradient, integrated_gradients, occlusion
from sft_probes.explained_inputs import (
    IMAGE,
    Baseline,
    Explainable,
    check_baseline,
    explainable,
    role_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Run

Edge = Annotated[int, Gt(0)]


class Attribution:
    """What explanations have in common; a subclass computes scores, in `scores`."""

    name: ClassVar[str] = ""
    against_baseline: ClassVar[bool] = False
    """Scores add up to the output less that of the baseline."""

    def __init__(self, baseline: Baseline, cells: int) -> None:
        self.baseline, self.cells = baseline, cells

    def check(self) -> None:
        """Raise RecipeError if captum is not there."""
        if find_spec("captum") is None:
            raise RecipeError(
                f'`explanation.use`: "{self.name}" needs captum, which this Python lacks: '
                "pip install 'sft-engine[explain]'"
            )

    def prepare(self, run: Run) -> None:
        """Refuse a model that cannot be explained."""
        require_whole_model(run, self.name)
        check_baseline(run, role_of(run, self.name), self.baseline, self.name)

    def scores(self, subject: Subject, batch: int) -> Tensor:
        """Return a score of each part, float64 (parts,)."""
        raise NotImplementedError

    def explain(
        self, run: Run, rows: list[dict[str, Any]], outputs: Sequence[int]
    ) -> list[Explained]:
        """Explain one output for each row."""
        run.model.eval()
        return [self._one(run, row, output) for row, output in zip(rows, outputs, strict=True)]

    def _one(self, run: Run, row: dict[str, Any], output: int) -> Explained:
        asked = explainable(run, row, output, baseline=self.baseline, edge=self.cells)
        subject = asked.subject
        value = subject.value_of(subject.given)
        with torch.enable_grad():
            scores = self.scores(subject, _batch_size(run)) if subject.count else torch.zeros(0)
        numbers = tuple(scores.tolist())
        base = subject.value_of(subject.baseline) if self.against_baseline else None
        return Explained(
            method=self.name,
            output=run.task.head.names[output],
            parts=asked.parts,
            scores=numbers,
            value=value,
            baseline=base,
            gap=None if base is None else math.fsum(numbers) - (value - base),
            shape=asked.shape,
            spans=asked.spans,
            heat_map=_heat_map(run, asked, numbers),
        )


def _batch_size(run: Run) -> int:
    """Return how many inputs go through the model at a time: as in training, there are gradients."""
    train = run.plan.train
    return train.micro_batch_size or train.batch_size


def _heat_map(run: Run, asked: Explainable, scores: Sequence[float]) -> str:
    if role_of(run, "explanation") != IMAGE:
        return ""
    from sft_probes.heat_map import heat_map

    assert asked.shape is not None
    return heat_map(asked.subject.given[0], scores, asked.shape, run.backbone)


class IntegratedGradients(Attribution):
    """Integrated gradients (Sundararajan et al. 2017): the gradient along the way from an input that says nothing.

    Scores add up to the output less that of the baseline; `gap` of a record says how far they are from it, and
    more steps make it smaller. Of texts, embeddings are explained, and added up to words.

    Args:
        steps: Points of the integral; each costs a forward and a backward pass.
        baseline: The input that says nothing: of texts the token `mask` or `pad` in place of each of a word, or
            `zero` embeddings; `auto` takes the first that there is. Of images and tables always 0 of what enters the
            model: the mean colour, and the mean of a standardised column.
        cells: Rows and columns of the grid for which an image has scores.
    """

    name = "integrated-gradients"
    against_baseline = True

    def __init__(
        self, steps: Annotated[int, Gt(0)] = 50, baseline: Baseline = "auto", cells: Edge = 8
    ) -> None:
        super().__init__(baseline, cells)
        self.steps = steps

    def scores(self, subject: Subject, batch: int) -> Tensor:
        """Integrate."""
        return integrated_gradients(subject, self.steps, batch)


class InputXGradient(Attribution):
    """Input times gradient (Shrikumar et al. 2016): what the output would lose if it were linear; one pass.

    Noisy where a model is far from linear: prefer integrated gradients where there is time.

    Args:
        cells: Rows and columns of the grid for which an image has scores.
    """

    name = "input-x-gradient"

    def __init__(self, cells: Edge = 8) -> None:
        super().__init__("auto", cells)

    def scores(self, subject: Subject, batch: int) -> Tensor:  # noqa: ARG002 - contract
        """Multiply."""
        return input_x_gradient(subject)


class Occlusion(Attribution):
    """Occlusion (Zeiler and Fergus 2014): how much the output falls when one part is taken away; no gradients.

    Costs a forward pass for each word, cell or column.

    Args:
        baseline: What stands in for a part: of texts the token `mask` or `pad`, or `zero` embeddings; `auto` takes the
            first that there is. Of images and tables always 0 of what enters the model: the mean colour, and the
            mean of a standardised column.
        cells: Rows and columns of the grid of which an image loses one cell at a time.
    """

    name = "occlusion"

    def __init__(self, baseline: Baseline = "auto", cells: Edge = 8) -> None:
        super().__init__(baseline, cells)

    def scores(self, subject: Subject, batch: int) -> Tensor:
        """Take parts away."""
        return occlusion(subject, batch)
