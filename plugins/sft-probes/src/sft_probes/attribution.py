"""How an output is attributed to the parts of an input, as pure functions of any model; the methods are captum's.

Nothing in here knows of texts, images or tables: `Subject` is one of them as a tensor whose places belong to parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NO_PART = -1


@dataclass(frozen=True)
class Subject:
    """One input of a model, and the output that is to be explained.

    Args:
        given: The input as a tensor (1, ...): embeddings, pixels, numbers.
        baseline: An input of the same shape that says nothing.
        member: Which part each place belongs to, int64; -1 for none. Its shape is that of `given` without the first
            dimension and without `channel`.
        channel: Dimension of `given` that a place has all of, such as the width of embeddings; None if a place is
            one number.
        count: How many parts there are.
        answer: The output (m,) for inputs (m, ...), each row depending on its own input alone.
    """

    given: Tensor
    baseline: Tensor
    member: Tensor
    channel: int | None
    count: int
    answer: Callable[[Tensor], Tensor]

    def by_part(self, scores: Tensor) -> Tensor:
        """Add up scores of the shape of `given`: float64 (parts,), on the CPU."""
        places = scores.detach().double()
        if self.channel is not None:
            places = places.sum(dim=self.channel)
        flat, member = places[0].flatten(), self.member.flatten()
        real = member != NO_PART
        sums = torch.zeros(self.count, dtype=torch.float64, device=flat.device)
        return sums.index_add_(0, member[real], flat[real]).cpu()

    def with_parts(self, present: Tensor) -> Tensor:
        """Return inputs (m, ...) in which the baseline stands where `present` (m, parts) is 0."""
        always = present.new_ones(len(present), 1)
        # -1 is the last column, which is always there.
        kept = torch.cat([present, always], dim=1)[:, self.member] > 0
        if self.channel is not None:
            kept = kept.unsqueeze(self.channel)
        return torch.where(kept, self.given, self.baseline)

    def value_of(self, inputs: Tensor) -> float:
        """Return the output for one input (1, ...)."""
        with torch.no_grad():
            return float(self.answer(inputs).double())


def integrated_gradients(subject: Subject, steps: int, batch: int) -> Tensor:
    """Return integrated gradients of each part, float64 (parts,) (Sundararajan et al. 2017, equation 1).

    The sum is that of the output for the input less that for the baseline, up to the error of the integral
    (Gauss-Legendre) and what falls to no part.

    Args:
        subject: The input.
        steps: Points of the integral, each a forward and a backward pass.
        batch: How many go through the model at a time.
    """
    from captum.attr import IntegratedGradients

    found = IntegratedGradients(subject.answer).attribute(
        subject.given,
        baselines=subject.baseline,
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=batch,
    )
    return subject.by_part(found)


def input_x_gradient(subject: Subject) -> Tensor:
    """Return input times gradient of each part, float64 (parts,) (Shrikumar et al. 2016)."""
    from captum.attr import InputXGradient

    given = subject.given.detach().clone().requires_grad_()
    return subject.by_part(InputXGradient(subject.answer).attribute(given))


def occlusion(subject: Subject, batch: int) -> Tensor:
    """Return by how much the output falls when the baseline takes the place of each part, float64 (parts,).

    That of Zeiler and Fergus 2014, section 4.2, with parts in place of a sliding square.

    Args:
        subject: The input.
        batch: How many inputs go through the model at a time.
    """
    from captum.attr import FeatureAblation

    present = torch.ones(1, subject.count, device=subject.given.device)
    ablation = FeatureAblation(lambda rows: subject.answer(subject.with_parts(rows)))
    found: Tensor = ablation.attribute(present, perturbations_per_eval=batch)
    return found[0].detach().double().cpu()


def cells(height: int, width: int, edge: int) -> tuple[Tensor, tuple[int, int]]:
    """Return which cell of a grid each pixel is in, int64 (height, width), and rows and columns of the grid.

    Args:
        height: Of the picture, in pixels.
        width: The same.
        edge: Rows and columns; fewer where the picture has fewer pixels.
    """
    rows, columns = min(edge, height), min(edge, width)
    down = torch.arange(height) * rows // height
    right = torch.arange(width) * columns // width
    return down.unsqueeze(1) * columns + right, (rows, columns)
