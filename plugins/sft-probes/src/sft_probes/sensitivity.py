"""Input sensitivity: how far predictions move when a little noise is added to what the model sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from sft_engine import order, ranks, sections
from sft_engine.texts.embeddings import input_embeddings, kept
from sft_probes.blocks import curve_blocks
from sft_probes.measures import logits_total, probabilities_of, require_kind
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sft_engine import Batch, Run, Split, View
    from sft_engine.sections import Block

    Floats = NDArray[np.float64]

KINDS = frozenset({"classification", "multi-label"})
KL, MEAN, LARGEST = "symmetric-kl", "lipschitz", "lipschitz-max"


def symmetric_kl(first: Floats, second: Floats, *, several: bool = False) -> Floats:
    """Return KL(p || q) + KL(q || p) of each example in nats (n,); with several labels their mean.

    Args:
        first: Logits of p (n, outputs).
        second: Logits of q.
        several: An example may have any of the labels.
    """
    gap = probabilities_of(first, several=several) - probabilities_of(second, several=several)
    if several:  # (p - q) times the difference of log-odds
        return np.asarray((gap * (first - second)).mean(axis=1))
    logs = (first - logits_total(first)) - (second - logits_total(second))
    return np.asarray((gap * logs).sum(axis=1))


def slopes(first: Floats, second: Floats, distances: Floats) -> Floats:
    """Return |f(x) - f(x + z)| / |z| of the logits (n,): each a lower bound of the local Lipschitz constant.

    Args:
        first: f(x) (n, outputs).
        second: f(x + z).
        distances: |z| (n,); where it is 0 the slope is 0.
    """
    moved = np.linalg.norm(first - second, axis=1)
    found: Floats = np.zeros_like(moved)
    np.divide(moved, distances, out=found, where=distances > 0)
    return found


def noise_like(
    values: Tensor, strength: float, seed: int, ids: Sequence[int], real: Tensor, dims: int
) -> Tensor:
    """Return Gaussian noise whose standard deviation is `strength` times the root mean square of the values.

    What an example gets depends on seed, example and its own values alone, not on padding or its batch.

    Args:
        values: (n, ...).
        strength: Factor.
        seed: With the id of an example decides the draws.
        ids: Of the examples.
        real: 1 where values are no padding, else 0; (n, ...), or of length 1 along trailing dimensions.
        dims: How many trailing dimensions have a root mean square of their own.
    """
    draws = np.stack(
        [
            order.generator(seed, each).standard_normal(values.shape[1:], dtype=np.float32)
            for each in ids
        ]
    )
    over = tuple(range(values.ndim - dims, values.ndim))
    weights = real.to(values.dtype).expand_as(values)
    squares = (values.square() * weights).sum(over, keepdim=True)
    size = (squares / weights.sum(over, keepdim=True).clamp(min=1)).sqrt()
    return torch.from_numpy(draws).to(values.device, values.dtype) * size * strength * weights


class Sensitivity(Probe):
    """Add Gaussian noise to what enters the model: embeddings of texts, pixels, samples, features.

    For each strength: the mean of KL(p || q) + KL(q || p) between the answers with and without noise, and how
    far logits move for each unit of noise, a lower bound of the local Lipschitz constant of the model there.

    Args:
        severities: Standard deviation of the noise, as a share of the root mean square of the input: of each
            token's embedding, or of an example's encoded pixels, samples or features.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the noise.
    """

    title = "Sensitivity to noise"
    axis = "noise, share of the input's root mean square"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(0)], ...], MinLen(1)] = (
            0.05,
            0.1,
            0.2,
            0.5,
        ),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 500,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.distances: dict[int, float] = {}
        self._logits: Floats | None = None
        self._found: dict[str, float] = {}
        self._hook: Any = None

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse tasks without classes."""
        super().prepare(run, data)
        require_kind(run, self.name, KINDS)
        if "text" in run.task.inputs:
            input_embeddings(run.model, f"`{self.name}`")

    def views(self, run: Run) -> list[View]:  # noqa: ARG002 - contract
        """Return a view for each strength."""
        strengths = [float(each) for each in self.severities if each]
        return [self.view(each, perturb=self._adding(each)) for each in strengths]

    def _adding(self, strength: float) -> Callable[[Run, Batch], None]:
        def perturb(run: Run, batch: Batch) -> None:
            if not batch.real:
                return
            if "text" in run.task.inputs:
                self._into_embeddings(run, batch, strength)
            else:
                self._into_inputs(batch, strength, padded="audio" in run.task.inputs)

        return perturb

    def _into_inputs(self, batch: Batch, strength: float, *, padded: bool) -> None:
        for name, values in batch.inputs.items():
            if values.is_floating_point() and values.ndim > 1 and "mask" not in name:
                real = values != 0 if padded else torch.ones_like(values)
                dims = values.ndim - 1
                noise = noise_like(values, strength, self.seed, batch.ids, real, dims)
                self._measure(batch.ids, noise)
                batch.inputs[name] = values + noise

    def _into_embeddings(self, run: Run, batch: Batch, strength: float) -> None:
        """Let the next forward pass, and only that, add noise to what the embedding returns."""
        module = input_embeddings(run.model, f"`{self.name}`")
        self._unhook()

        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            self._unhook()
            real = kept(run, batch, module, output)
            noise = noise_like(output, strength, self.seed, batch.ids, real, 1)
            self._measure(batch.ids, noise)
            return output + noise

        self._hook = module.register_forward_hook(add)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _measure(self, ids: list[int], noise: Tensor) -> None:
        lengths = noise.flatten(1).double().norm(dim=1).tolist()
        self.distances |= dict(zip(ids, lengths, strict=True))

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Compare the answers with those without noise."""
        logits = predictions["logits"].double().numpy()
        if view is None:
            self._logits = logits
        else:
            self._found = self._compare(run, view, logits)
        super().collect(run, view, values, predictions)

    def _compare(self, run: Run, view: View, logits: Floats) -> dict[str, float]:
        for theirs in ranks.everyones(run.accelerator, self.distances):
            self.distances |= theirs
        ids = view.examples(run.splits[self.split]).tolist()
        distances = np.array([self.distances.get(each, 0.0) for each in ids])
        self.distances = {}
        self._unhook()
        assert self._logits is not None
        several = run.task.head.kind == "multi-label"
        slope = slopes(self._logits, logits, distances)
        return {
            KL: float(symmetric_kl(self._logits, logits, several=several).mean()),
            MEAN: float(slope.mean()),
            LARGEST: float(slope.max()),
        }

    def measured(self, run: Run, view: View) -> dict[str, float]:  # noqa: ARG002 - contract
        """Return mean divergence, and mean and largest slope."""
        return self._found

    def blocks(self, run: Run) -> list[Block]:
        """Return the divergence by noise, then the curve of the metric and the table."""
        curve = self.curve(run)
        points = [0.0] + [
            value if np.isfinite(value) else None for value in (m[KL] for m in curve.more[1:])
        ]
        pairs = sorted(zip(map(float, curve.severities), points, strict=True), key=lambda p: p[0])
        chart = sections.lines(
            "Divergence by noise",
            x=(self.axis, [x for x, _ in pairs]),
            y="KL(p || q) + KL(q || p), mean, in nats",
            series={"with noise against without": [y for _, y in pairs]},
        )
        return [chart, *curve_blocks(curve)]
