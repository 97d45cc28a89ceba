"""NEFTune: noise on the embeddings of every training pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from torch import Tensor, nn

from sft_engine import hookimpl
from sft_regularizers.embeddings import changed, example_noise, input_embeddings, kept

if TYPE_CHECKING:
    from sft_engine import Batch, Run


def scaled_to_length(noise: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Return noise times `alpha / sqrt(length * width)` (Jain et al. 2023, algorithm 1), 0 at padding.

    Args:
        noise: Uniform between -1 and 1, (n, length, width).
        mask: 1 where an example has an input, (n, length, 1); the length is counted by it.
        alpha: Strength.
    """
    length = mask.flatten(1).sum(dim=1).clamp(min=1)
    size = alpha / (length * noise.shape[-1]).sqrt()
    return noise * mask * size.view(-1, 1, 1)


class NefTune:
    """Add uniform noise to the embeddings of every training pass, smaller for longer inputs.

    Args:
        alpha: Strength; the authors take 5, 10 or 15.
    """

    def __init__(self, alpha: Annotated[float, Ge(0)] = 5.0) -> None:
        self.alpha = alpha
        self._embeddings: nn.Module = nn.Module()

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the embeddings."""
        self._embeddings = input_embeddings(run.model, "neftune")

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run: Run, batch: Batch) -> Iterator[None]:
        """Add the noise to all passes of this micro-batch."""
        if not self.alpha:
            yield
            return

        def noisy(embedded: Tensor) -> Tensor:
            if len(embedded) != len(batch.ids):
                return embedded
            draws = example_noise(run, batch, "neftune", embedded.shape[1:], "uniform")
            mask = kept(run, batch, self._embeddings, embedded)
            return embedded + scaled_to_length(draws.to(embedded.dtype), mask, self.alpha)

        with changed(self._embeddings, noisy):
            yield
