"""AutoAttack on images, by pyautoattack (extra `attacks`): an ensemble without parameters to tune."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn

from sft_engine import RecipeError, sections
from sft_engine.devices import own_state
from sft_probes.adversarial import ImageAttack, Pixels

if TYPE_CHECKING:
    from sft_engine import Run
    from sft_engine.sections import Block
    from sft_probes.attacks import Loss

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
FEW = ("apgd-ce", "fab", "square")
"""For fewer than four classes, of which the targeted DLR loss is not defined."""
FEWEST = 4
ITERATIONS = 100
QUERIES = 5000
TARGETS = 9
"""What the standard version sets."""


class _Answers(nn.Module):
    """The model as a function of pixels, which is what the library calls."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, images: Tensor) -> Tensor:
        return self.pixels.logits(images)


class AutoAttack(ImageAttack):
    """Attack images with AutoAttack (Croce and Hein 2020), in the standard version: no parameter is tuned.

    APGD on cross-entropy and targeted, FAB targeted, Square; with fewer than four classes APGD on
    cross-entropy, FAB and Square. It costs thousands of forward passes an example, so that few are attacked.

    Args:
        severities: Radii in 1/255.
        iterations: Of APGD and FAB; 100 in the standard version.
        queries: Of Square; 5000 in the standard version, 1000 where it shall be cheap.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the attacks.
    """

    title = "AutoAttack"
    also: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(0), Le(255)], ...], MinLen(1)] = (8.0,),
        iterations: Annotated[int, Gt(0)] = ITERATIONS,
        queries: Annotated[int, Gt(0)] = QUERIES,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 50,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.iterations, self.queries = iterations, queries
        self.sanity = False

    def check(self) -> None:
        """Raise RecipeError if the library is not there."""
        if find_spec("pyautoattack") is None:
            raise RecipeError(
                '[[probe]] use = "autoattack" needs pyautoattack, which this Python lacks: '
                "pip install 'sft-probes[attacks]'"
            )

    def perturbed(self, pixels: Pixels, loss: Loss, radii: Tensor) -> Tensor:  # noqa: ARG002 - contract
        """Run the attacks on all images of which the model is right so far."""
        images, found = pixels.images, pixels.images.clone()
        labels = self.labels_of(pixels.batch)
        for radius in sorted(set(radii.tolist())):
            if radius:
                chosen = radii == radius
                found[chosen] = autoattacked(
                    _Answers(pixels).eval(),
                    images[chosen],
                    labels[chosen],
                    radius,
                    classes=self.run.task.head.outputs,
                    iterations=self.iterations,
                    queries=self.queries,
                    seed=self.seed,
                )
        return found

    def blocks(self, run: Run) -> list[Block]:
        """Say which attacks these were."""
        names = ", ".join(attacks_for(run.task.head.outputs))
        standard = (self.iterations, self.queries) == (ITERATIONS, QUERIES)
        version = "the standard version" if standard else "not the standard version"
        note = (
            f"Attacks: {names}, {self.iterations} iterations, {self.queries} queries of Square: {version} of "
            "AutoAttack. An example counts as right only if every attack fails."
        )
        return [*super().blocks(run), sections.text(note)]


def autoattacked(  # noqa: PLR0913 - what the library takes
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    classes: int,
    iterations: int = ITERATIONS,
    queries: int = QUERIES,
    seed: int = 0,
) -> Tensor:
    """Return images of which the first attack that succeeds has changed those that it fooled.

    Args:
        model: Answers (n, classes) to pixels 0..1; in evaluation mode.
        images: (n, c, h, w), 0..1.
        labels: (n,).
        eps: Radius in the L-infinity norm.
        classes: How many there are.
        iterations: Of APGD and FAB.
        queries: Of Square.
        seed: Of all draws; global generators are given back as they were.
    """
    from pyautoattack import AutoAttack as Ensemble

    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with own_state(seed), torch.enable_grad():
            attack: Any = Ensemble(
                model,
                eps=eps,
                norm="Linf",
                version="custom",
                attacks=list(attacks_for(classes)),
                seed=seed,
                device=images.device,
            )
            _standard(attack, classes, iterations, queries)
            found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    finally:
        logger.setLevel(level)
    changed: Tensor = found.detach()
    return changed


def attacks_for(classes: int) -> tuple[str, ...]:
    """Return the attacks of the ensemble that are defined for this many classes."""
    return STANDARD if classes >= FEWEST else FEW


def _standard(attack: Any, classes: int, iterations: int, queries: int) -> None:
    """Set what the library's standard version sets; at most as many targets as there are other classes."""
    attack.apgd.n_restarts = attack.fab.n_restarts = attack.apgd_targeted.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classes - 1)
    for each in (attack.apgd, attack.apgd_targeted, attack.fab):
        each.n_iter = iterations
    attack.square.n_queries = queries
