"""Attacks on texts by gradients, in the space of the input embeddings: FGSM and PGD in an L2 ball.

The radius is relative: a share of the norm of all embeddings of the text, padding apart. What comes out stands
for no text; it says how near the border of a class is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn

from sft_engine import order
from sft_engine.texts.embeddings import changed, input_embeddings, kept
from sft_probes.adversarial import Attack, asked, loss_of
from sft_probes.attacks import Loss, fgsm, pgd, strongest
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from sft_engine import Batch, Run, Split, View

Radii = Annotated[tuple[Annotated[float, Ge(0)], ...], MinLen(1)]


class Moved(nn.Module):
    """A model whose embedded input is moved by `shift` in each forward pass.

    Args:
        model: Any; used, not copied.
        embeddings: The module of it whose output is moved, the first time that it is called.

    Attributes:
        shift: (n, length, width); None moves nothing.
        seen: What that output was, before it was moved.
    """

    def __init__(self, model: nn.Module, embeddings: nn.Module) -> None:
        super().__init__()
        self.model, self.embeddings = model, embeddings
        self.shift: Tensor | None = None
        self.seen: Tensor | None = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the model."""
        with self._moving():
            return self.model(*inputs, **named)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        self.seen = None
        with changed(self.embeddings, self._move):
            yield

    def _move(self, embedded: Tensor) -> Tensor:
        if self.seen is not None:
            return embedded
        self.seen = embedded.detach()
        return embedded if self.shift is None else embedded + self.shift.to(embedded.dtype)


class EmbeddingAttack(Attack):
    """Attacks embeddings; a subclass says how, in `shift`."""

    inputs: ClassVar[frozenset[str]] = frozenset({"text"})
    axis = "radius relative to the embeddings"

    def prepare(self, run: Run, data: Split) -> None:
        """Find the embeddings."""
        super().prepare(run, data)
        input_embeddings(run.model, f"`{self.name}`")

    def shift(self, loss: Loss, still: Tensor, radii: Tensor, batch: Batch) -> Tensor:
        """Return what is added to the embeddings (n, length, width), within these radii (n,).

        Args:
            loss: Of each example as a function of that.
            still: Zeros.
            radii: L2 norms.
            batch: Its examples.
        """
        raise NotImplementedError

    def views(self, run: Run) -> list[View]:
        """Return a view for each radius, of the model with moved embeddings."""
        self.moved = Moved(run.model, input_embeddings(run.model, f"`{self.name}`"))
        return super().views(run)

    def view(self, severity: Any, **changes: Any) -> View:
        """Return a view through the model with moved embeddings."""
        return Probe.view(self, severity, **{**changes, "model": self.moved})

    def attack(self, run: Run, batch: Batch, radii: Tensor) -> None:
        """Set by how much the next forward pass moves the embeddings; the batch stays as it is."""
        moved = self.moved
        with torch.no_grad():
            self._logits(run, batch)
        assert moved.seen is not None
        embedded = moved.seen.float()
        real = kept(run, batch, moved.embeddings, embedded)
        lengths = (embedded * real).flatten(1).norm(dim=1)
        loss = loss_of(lambda shift: self._logits(run, batch, shift * real), self.labels_of(batch))
        radii = radii.to(embedded) * lengths
        moved.shift = self.shift(loss, torch.zeros_like(embedded), radii, batch) * real

    def _logits(self, run: Run, batch: Batch, shift: Tensor | None = None) -> Tensor:
        self.moved.shift = shift
        return asked(run, self.moved, batch.inputs)

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the texts, which no attack here changes."""
        return {name: row[name] for name in ("text", "text_pair") if row.get(name) is not None}


def ball_start(example: int, shape: torch.Size, real: Tensor, *key: int) -> Tensor:
    """Return a point of the unit ball (length, width), 0 where `real` (length, 1) is; padding changes nothing.

    Args:
        example: Its id.
        shape: (length, width).
        real: 1 where there is a token.
        key: What else decides the draw.
    """
    draws = order.generator(*key, example)
    share = float(draws.random())
    normal = torch.from_numpy(draws.standard_normal(tuple(shape), dtype=np.float32)) * real.cpu()
    size = max(int(real.sum()) * shape[-1], 1)
    point: Tensor = normal / normal.norm().clamp_min(1e-12) * share ** (1 / size)
    return point


class EmbeddingFgsm(EmbeddingAttack):
    """Attack embedded texts with one step along the gradient, `eps * g / norm(g)` (Miyato et al. 2017).

    Args:
        severities: Radii, as shares of the L2 norm of the text's embeddings.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "FGSM attack on embeddings"

    def __init__(
        self,
        severities: Radii = (0.01, 0.03, 0.1, 0.3),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 200,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def shift(self, loss: Loss, still: Tensor, radii: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 - contract
        """Make one step."""
        return fgsm(loss, still, radii, norm="l2", bounds=None)


class EmbeddingPgd(EmbeddingAttack):
    """Attack embedded texts with projected gradient descent in an L2 ball, from a random start.

    Args:
        severities: Radii, as shares of the L2 norm of the text's embeddings.
        steps: How many; each costs a forward and a backward pass.
        step_size: Of the radius.
        restarts: Random starts; the one whose loss ends up greatest counts.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the starts.
    """

    title = "PGD attack on embeddings"

    def __init__(
        self,
        severities: Radii = (0.01, 0.03, 0.1, 0.3),
        steps: Annotated[int, Gt(0)] = 10,
        step_size: Annotated[float, Gt(0), Le(2)] = 0.25,
        restarts: Annotated[int, Gt(0)] = 1,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 100,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.steps, self.step_size, self.restarts = steps, step_size, restarts

    def shift(self, loss: Loss, still: Tensor, radii: Tensor, batch: Batch) -> Tensor:
        """Make the steps, from each start."""
        assert self.moved.seen is not None
        real = kept(self.run, batch, self.moved.embeddings, still)
        found = []
        for number in range(self.restarts):
            starts = [
                ball_start(example, still.shape[1:], real[place], self.seed, number)
                for place, example in enumerate(batch.ids)
            ]
            start = torch.stack(starts).to(still) * radii.view(-1, 1, 1)
            size = self.step_size * radii
            steps = self.steps
            found.append(
                pgd(
                    loss,
                    still,
                    radii,
                    steps=steps,
                    step_size=size,
                    start=start,
                    norm="l2",
                    bounds=None,
                )
            )
        return strongest(loss, found)
