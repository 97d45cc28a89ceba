"""Attacks on images by gradients, in pixels 0..1 before the normalisation: FGSM and PGD.

In evaluation mode, in the run's precision. Accuracy counts an example as right only if neither it nor any
perturbation of it that was found within a smaller radius is answered wrongly (worst case per example).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn

from sft_engine import Batch, RecipeError, logits_of, order, ranks
from sft_engine.devices import choose_precision
from sft_engine.feed import fetch
from sft_probes import masking
from sft_probes.asking import require_classes, require_whole_model
from sft_probes.attacks import Loss, fgsm, gradient, pgd, strongest
from sft_probes.pictures import IMAGE, picture_of
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from sft_engine import Run, Split, View
    from sft_engine.sections import Block

TOP = 255
UNBOUNDED = 64
"""Radius, in 1/255, at which nothing is left of what an image shows."""
NOISE, FGSM, FAR = "noise-check", "fgsm-check", "64-check"

Radii = Annotated[tuple[Annotated[float, Ge(0), Le(TOP)], ...], MinLen(1)]


class Attack(Probe):
    """Attacks by gradients within balls of rising radius; a subclass says how, in `perturbed`."""

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse what cannot be attacked."""
        super().prepare(run, data)
        require_classes(run, self.name)
        require_whole_model(run, self.name)

    def views(self, run: Run) -> list[View]:
        """Return a view for each radius, the smallest first."""
        self.run = run
        self.fooled: dict[int, float] = {}
        radii = sorted({float(each) for each in self.severities if each})
        return [self.view(each, perturb=self._within(each)) for each in radii]

    def _within(self, radius: float) -> Callable[[Run, Batch], None]:
        def perturb(run: Run, batch: Batch) -> None:
            if batch.real:
                self.attack(run, batch, self.radii(batch, radius))

        return perturb

    def attack(self, run: Run, batch: Batch, radii: Tensor) -> None:
        """Change a batch on the device; `radii` (n,) is 0 for what shall stay as it is."""
        raise NotImplementedError

    def radii(self, batch: Batch, radius: float) -> Tensor:
        """Return the radius of each example (n,): for one that is fooled already, the least that did it."""
        return torch.tensor([min(radius, self.fooled.get(i, radius)) for i in batch.ids])

    def labels_of(self, batch: Batch) -> Tensor:
        """Return the classes to be led away from (n,): the true ones, else what the model said."""
        if "label" in batch.targets:
            return batch.targets["label"]
        assert self.clean is not None
        places = {example: place for place, example in enumerate(self.ids or ())}
        answers = [self.clean.answers[places.get(example, example)] for example in batch.ids]
        return torch.stack(answers).to(self.run.device)

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Keep what a view gave, and who was fooled first by which radius."""
        super().collect(run, view, values, predictions)
        assert self.clean is not None
        look = self.looks[-1] if view is not None else self.clean
        true = self.clean.answers if self.labels is None else self.labels
        for place in (look.answers != true).nonzero().flatten().tolist():
            example = place if self.ids is None else self.ids[place]
            self.fooled.setdefault(example, 0.0 if view is None else float(view.tags["severity"]))


def loss_of(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Loss:
    """Return the cross-entropy of each example as a function of what is attacked."""

    def loss(inputs: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits(inputs), labels, reduction="none")

    return loss


def asked(run: Run, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return a model's answers (n, classes) in float32, in evaluation mode and the run's precision."""
    model.eval()
    with choose_precision(run.plan.train, run.accelerator, run.model).autocast():
        return logits_of(run.backbone.forward(model, inputs)).float()


class Pixels:
    """A batch of images as pixels 0..1, and the model as a function of them.

    Args:
        run: The run; its backbone's `pipeline` knows mean and standard deviation.
        batch: On the device, normalised.
    """

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run, self.batch = run, batch
        self.given = batch.inputs[IMAGE]
        pipeline: Any = run.backbone.pipeline  # type: ignore[attr-defined]
        moments = (
            torch.tensor(each, dtype=self.given.dtype) for each in (pipeline.mean, pipeline.std)
        )
        self.mean, self.std = (each.view(-1, 1, 1).to(self.given.device) for each in moments)
        self.images = (self.given * self.std + self.mean).clamp(0, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Return the model's answers (n, classes) to pixels 0..1."""
        inputs = {**self.batch.inputs, IMAGE: (images - self.mean) / self.std}
        return asked(self.run, self.run.model, inputs)

    def put(self, images: Tensor, radii: Tensor) -> None:
        """Put pixels into the batch; where the radius is 0, what was there stays bit for bit."""
        stays = (radii == 0).view(-1, 1, 1, 1)
        normal = (images - self.mean) / self.std
        self.batch.inputs[IMAGE] = torch.where(stays, self.given, normal)


def drawn(batch: Batch, shape: torch.Size, seed: int, *key: int, device: torch.device) -> Tensor:
    """Return even draws from -1 to 1 of the shape of a batch: of seed, key and example alone."""
    rows = [
        order.generator(seed, *key, each).random(shape[1:], dtype="float32") for each in batch.ids
    ]
    return torch.stack([torch.from_numpy(2 * row - 1) for row in rows]).to(device)


class ImageAttack(Attack):
    """Attacks pixels; a subclass says how, in `perturbed`."""

    inputs: ClassVar[frozenset[str]] = frozenset({IMAGE})
    axis = "radius in 1/255"
    sanity: bool = True
    also: ClassVar[tuple[str, ...]] = (NOISE,)
    """Which views the sanity checks need."""

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse a backbone of which nobody knows how it normalises."""
        super().prepare(run, data)
        if not hasattr(getattr(run.backbone, "pipeline", None), "std"):
            raise RecipeError(
                f"`{self.name}` attacks pixels before they are normalised, and the backbone does not say how "
                "it does that (`pipeline.mean`, `pipeline.std`): remove the probe, or take another backbone"
            )

    def perturbed(self, pixels: Pixels, loss: Loss, radii: Tensor) -> Tensor:
        """Return pixels (n, c, h, w) within 0..1 and these radii (n,) of those given."""
        raise NotImplementedError

    def views(self, run: Run) -> list[View]:
        """Return a view for each radius, and those of the sanity checks at the largest one."""
        views = super().views(run)
        self.checked: dict[str, float] = {}
        self.flat: dict[int, bool] = {}
        self.unsteady = 0.0
        if not self.sanity or not views:
            return views
        return views + [self.view(name, perturb=self._checking(name)) for name in self.also]

    def attack(self, run: Run, batch: Batch, radii: Tensor) -> None:
        """Change the pixels."""
        pixels = Pixels(run, batch)
        loss = loss_of(pixels.logits, self.labels_of(batch))
        radii = radii.to(pixels.given) / TOP
        pixels.put(self.perturbed(pixels, loss, radii), radii)

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Keep what a view gave; those of the sanity checks are not on the curve."""
        if view is None or view.tags["severity"] not in self.also:
            super().collect(run, view, values, predictions)
            return
        if "label" in predictions:
            right = predictions["logits"].argmax(dim=1) == predictions["label"]
            self.checked[view.tags["severity"]] = float(right.double().mean())
        if view.tags["severity"] == NOISE:
            for flat, unsteady in ranks.everyones(run.accelerator, (self.flat, self.unsteady)):
                self.flat |= flat
                self.unsteady = max(self.unsteady, unsteady)
            values["zero-gradients"] = sum(self.flat.values()) / len(self.flat)

    # --- sanity ----------------------------------------------------------------------------------

    def _checking(self, name: str) -> Callable[[Run, Batch], None]:
        largest = max(float(each) for each in self.severities)

        def perturb(run: Run, batch: Batch) -> None:
            if not batch.real:
                return
            if name == FAR:
                self.attack(run, batch, self.radii(batch, UNBOUNDED))
                return
            pixels = Pixels(run, batch)
            # What is wrong without any attack stays so here as well, or accuracies could not be compared.
            radii = torch.tensor([0.0 if not self.fooled.get(i, 1) else largest for i in batch.ids])
            radii = radii.to(pixels.given) / TOP
            loss = loss_of(pixels.logits, self.labels_of(batch))
            if name == FGSM:
                pixels.put(fgsm(loss, pixels.images, radii), radii)
                return
            self._inspect(pixels, loss)
            signs = drawn(batch, pixels.images.shape, self.seed, 1, device=run.device).sign()
            noisy = pixels.images + radii.view(-1, 1, 1, 1) * signs
            pixels.put(noisy.clamp(0, 1), radii)

        return perturb

    def _inspect(self, pixels: Pixels, loss: Loss) -> None:
        """Note whose gradient is zero, and how much two forward passes differ."""
        found = gradient(loss, pixels.images).flatten(1)
        self.flat |= dict(zip(pixels.batch.ids, (found == 0).all(dim=1).tolist(), strict=True))
        with torch.no_grad():
            one, two = (pixels.logits(pixels.images).double() for _ in range(2))
        apart = float((one - two).abs().max() / one.abs().max().clamp_min(1e-12))
        self.unsteady = max(self.unsteady, apart)

    def _checks(self) -> list[masking.Check]:
        if not self.checked or not self.looks or self.labels is None:
            return []
        last = self.looks[-1]
        right = float((last.answers == self.labels).double().mean())
        return masking.masking_checks(
            float(last.severity),
            right,
            fgsm=self.checked.get(FGSM),
            noise=self.checked.get(NOISE),
            unbounded=self.checked.get(FAR),
            flat=sum(self.flat.values()) / len(self.flat) if self.flat else None,
            unsteady=self.unsteady,
        )

    def facts(self, run: Run) -> dict[str, Any]:
        """Add the checks."""
        return {**super().facts(run), "checks": masking.masking_facts(self._checks())}

    def blocks(self, run: Run) -> list[Block]:
        """Put the checks before the examples."""
        *figures, examples = super().blocks(run)
        return [*figures, *masking.masking_blocks(self._checks()), examples]

    # --- what is shown ---------------------------------------------------------------------------

    def changed_row(self, data: Split, view: View, example: int) -> dict[str, Any]:
        """Return an example after the attack, which is made again."""
        run = self.run
        batch = fetch(data, run.task, run.backbone, [example], (0,), [])
        batch.to(run.device)
        assert view.perturb is not None
        view.perturb(run, batch)
        image = (Pixels(run, batch).images[0] * TOP).round().to(torch.uint8).cpu()
        return {**data.rows[example], IMAGE: image}

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the picture."""
        return {IMAGE: picture_of(row[IMAGE])}


class Fgsm(ImageAttack):
    """Attack images with one step along the sign of the gradient (Goodfellow et al. 2015).

    Args:
        severities: Radii in 1/255: 8 lets each value of a pixel change by 8/255.
        sanity: Look for masked gradients: random noise of the largest radius must do less, and no gradient
            may be zero.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the noise.
    """

    title = "FGSM attack"

    def __init__(
        self,
        severities: Radii = (1.0, 2.0, 4.0, 8.0),
        sanity: bool = True,  # noqa: FBT001, FBT002 - an option of a recipe
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 200,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.sanity = sanity

    def perturbed(self, pixels: Pixels, loss: Loss, radii: Tensor) -> Tensor:
        """Make one step."""
        return fgsm(loss, pixels.images, radii)


class Pgd(ImageAttack):
    """Attack images with projected gradient descent from a random start (Madry et al. 2018).

    Usual are a radius of 8 with step_size 0.25 and 10 to 50 steps for images of 32 pixels, and a radius of 4
    for ImageNet.

    Args:
        severities: Radii in 1/255: 8 lets each value of a pixel change by 8/255.
        steps: How many; each costs a forward and a backward pass.
        step_size: Of the radius.
        restarts: Random starts; the one whose loss ends up greatest counts.
        sanity: Look for masked gradients: accuracy near 0 at 64/255, at most that of FGSM and of random noise
            at the largest radius, no gradient zero.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw, of the starts and of the noise.
    """

    title = "PGD attack"
    also: ClassVar[tuple[str, ...]] = (NOISE, FGSM, FAR)

    def __init__(  # noqa: PLR0913, PLR0917 - options of a recipe
        self,
        severities: Radii = (1.0, 2.0, 4.0, 8.0),
        steps: Annotated[int, Gt(0)] = 10,
        step_size: Annotated[float, Gt(0), Le(2)] = 0.25,
        restarts: Annotated[int, Gt(0)] = 1,
        sanity: bool = True,  # noqa: FBT001, FBT002 - an option of a recipe
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 100,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)
        self.steps, self.step_size, self.restarts, self.sanity = steps, step_size, restarts, sanity

    def perturbed(self, pixels: Pixels, loss: Loss, radii: Tensor) -> Tensor:
        """Make the steps, from each start."""
        images, device = pixels.images, pixels.images.device
        found = []
        for number in range(self.restarts):
            start = drawn(pixels.batch, images.shape, self.seed, 2, number, device=device)
            start *= radii.view(-1, 1, 1, 1)
            size = self.step_size * radii
            found.append(pgd(loss, images, radii, steps=self.steps, step_size=size, start=start))
        return strongest(loss, found)
