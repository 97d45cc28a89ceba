"""The corruptions of ImageNet-C, by imagecorruptions-imaug (extra `corruptions`), with mCE.

Protocol: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations". Pictures are corrupted in memory, not read from the benchmark's files (JPEG of quality 85).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, MinLen

from sft_engine import RecipeError, order, sections
from sft_probes.asking import require_classes
from sft_probes.corruption_error import (
    ALEXNET,
    GROUPS,
    IMAGENET,
    LEVELS,
    USUAL,
    Corruption,
    Errors,
    alexnet,
    corruption_errors,
    in_percent,
    read_reference,
    relative_corruption_errors,
    require_same_setting,
)
from sft_probes.pictures import PictureProbe

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from sft_engine import Run, Split
    from sft_engine.sections import Block

SMALLEST = 32
"""Pixels of an edge that the library asks for."""
OWN_DRAWS = ("glass_blur", "impulse_noise")
"""Those which draw from a generator of their own, not from numpy's global one."""
RESIZED = 256
CROPPED = 224
"""What the benchmark makes of a picture: the shorter edge, then the middle of it."""


def corrupted(image: Image.Image, name: str, level: int, seed: int) -> Image.Image:
    """Return a corrupted picture, RGB; one with an edge below 32 pixels is enlarged first.

    Args:
        image: Any.
        name: Of the corruption.
        level: Severity, 1..5.
        seed: Decides what is drawn, nothing else does.
    """
    import numpy as np
    from imagecorruptions import corrupt
    from PIL import Image as Picture

    image = image.convert("RGB")
    if min(image.size) < SMALLEST:
        scale = SMALLEST / min(image.size)
        image = image.resize([math.ceil(edge * scale) for edge in image.size])
    seed &= 0xFFFFFFFF
    more = {"seed": seed} if name in OWN_DRAWS else {}
    before = np.random.get_state()  # noqa: NPY002 - what the library draws from
    np.random.seed(seed)  # noqa: NPY002
    try:
        found = corrupt(np.asarray(image), severity=level, corruption_name=name, **more)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return Picture.fromarray(found)


def cropped(image: Image.Image, size: int) -> Image.Image:
    """Return the middle of a picture, `size` pixels square, of its size at an edge of `size * 256 / 224`."""
    from torchvision.transforms.v2 import functional

    resized = functional.resize(image, [round(size * RESIZED / CROPPED)])
    middle: Image.Image = functional.center_crop(resized, [size])
    return middle


class Corruptions(PictureProbe):
    """Corrupt images as ImageNet-C does: 15 corruptions in 5 severities, with mCE against a reference.

    A picture of `size` pixels or more is resized and cropped first, as in the benchmark, and goes to the model
    so; a smaller one is corrupted as it is. Needs imagecorruptions-imaug (extra `corruptions`).

    Args:
        corruptions: Which; besides the 15 usual ones there are speckle_noise, gaussian_blur, spatter and
            saturate, which mCE leaves out.
        severities: Severities from 1 to 5.
        reference: What errors are divided by: a run folder (or one that the verb `probe` wrote) with the same
            probe on the same examples; `alexnet`, whose published errors hold for ImageNet alone; empty for
            none.
        size: Pixels of the square that is cut out of larger pictures; 0 corrupts all as they are.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the corruptions.
    """

    title = "Common corruptions"
    axis = "corruption and severity"

    def __init__(
        self,
        corruptions: Annotated[tuple[Corruption, ...], MinLen(1)] = USUAL,
        severities: Annotated[tuple[Annotated[int, Ge(1), Le(5)], ...], MinLen(1)] = LEVELS,
        reference: str = "",
        size: Annotated[int, Ge(0)] = CROPPED,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 100,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        self.corruptions = tuple(dict.fromkeys(corruptions))
        self.levels = tuple(sorted(set(severities)))
        kinds = [f"{name}-{level}" for level in self.levels for name in self.corruptions]
        super().__init__(kinds, split, examples, seed)
        self.reference, self.size = reference, size
        self._reference: Errors | None = None

    def check(self) -> None:
        """Raise RecipeError if the library is not there, or the reference cannot be read."""
        if find_spec("imagecorruptions") is None:
            raise RecipeError(
                '[[probe]] use = "corruptions" needs imagecorruptions-imaug, which this Python lacks: '
                "pip install 'sft-probes[corruptions]'"
            )
        if self.reference:
            known = self.reference == ALEXNET
            self._reference = alexnet(self.levels) if known else read_reference(self.reference)

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse what has no top-1 error, and a reference that does not fit."""
        super().prepare(run, data)
        require_classes(run, self.name)
        if self._reference is None:
            return
        require_same_setting(self._reference, self._setting(len(data)))
        if self.reference == ALEXNET and run.task.head.outputs != IMAGENET:
            raise RecipeError(
                f'`{self.name}`: reference = "{ALEXNET}" holds for ImageNet and its {IMAGENET} classes, the task '
                f"has {run.task.head.outputs}: name a run of yours as reference, or leave it out"
            )

    def alter(self, image: Image.Image, severity: str, draws: np.random.Generator) -> Any:
        """Corrupt it."""
        from torchvision.transforms.v2 import functional

        name, _, level = severity.rpartition("-")
        crop = 0 < self.size <= min(image.size)
        if crop:
            image = cropped(image, self.size)
        key = order.mix(int(draws.integers(2**62)), order.name_key(name), int(level))
        found = corrupted(image, name, int(level), key)
        return functional.pil_to_tensor(found) if crop else found

    # --- figures ---------------------------------------------------------------------------------

    def errors(self) -> Errors | None:
        """Return the top-1 errors; None without targets."""
        if self.labels is None or self.clean is None or not self.looks:
            return None
        found: dict[str, list[float]] = {name: [] for name in self.corruptions}
        for look in self.looks:  # by severity, then by corruption
            name, _, _ = str(look.severity).rpartition("-")
            found[name].append(_wrong(look.answers, self.labels))
        return Errors(_wrong(self.clean.answers, self.labels), found)

    def _setting(self, examples: int) -> dict[str, Any]:
        count = examples if self.ids is None else len(self.ids)
        return {
            "split": self.split,
            "examples": count,
            "seed": self.seed,
            "size": self.size,
            "severities": list(self.levels),
        }

    def facts(self, run: Run) -> dict[str, Any]:
        """Add errors by corruption, and what they are against the reference."""
        facts = super().facts(run)
        errors = self.errors()
        if errors is None:
            return facts
        assert self.labels is not None
        return {
            **facts,
            "setting": self._setting(len(self.labels)),
            "clean_error": errors.clean,
            "errors": dict(errors.corrupted),
            "mean_corrupted_error": errors.mean,
            "clean_relative_drop": errors.mean - errors.clean,
            **self._against(errors),
        }

    def _against(self, errors: Errors) -> dict[str, Any]:
        if self._reference is None:
            return {}
        plain = corruption_errors(errors, self._reference)
        relative = relative_corruption_errors(errors, self._reference)
        return {
            "reference": self._reference.name,
            "ce": {name: _finite(100 * each) for name, each in plain.items()},
            "mce": _finite(in_percent(plain)),
            "relative_ce": {name: _finite(100 * each) for name, each in relative.items()},
            "relative_mce": _finite(in_percent(relative)),
        }

    # --- section ---------------------------------------------------------------------------------

    def summary(self, run: Run) -> str:
        """Return one sentence: mean error, mCE, the worst corruption."""
        errors = self.errors()
        if errors is None:
            return super().summary(run)
        means = {name: sum(each) / len(each) for name, each in errors.corrupted.items()}
        worst = max(means, key=lambda name: means[name])
        found = self._against(errors)
        mce = found.get("mce")
        against = "" if mce is None else f", mCE {mce:.1f} against {found['reference']}"
        return (
            f"Mean corrupted error {errors.mean:.3f}, {errors.mean - errors.clean:+.3f} against clean"
            f"{against}; worst is {worst} with {means[worst]:.3f}."
        )

    def blocks(self, run: Run) -> list[Block]:
        """Return curves by group, the error of each corruption, and the examples."""
        errors = self.errors()
        if errors is None:
            return super().blocks(run)
        return [
            self._curves(errors),
            self._errors_block(errors),
            self._table(errors),
            *self._affected(run),
        ]

    def _curves(self, errors: Errors) -> Block:
        series = {}
        for group, members in {**GROUPS, "all": self.corruptions}.items():
            there = [errors.corrupted[name] for name in members if name in errors.corrupted]
            if there:
                means = [sum(each) / len(each) for each in zip(*there, strict=True)]
                series[group] = [1 - errors.clean, *(1 - mean for mean in means)]
        return sections.lines(
            "Accuracy by severity",
            x=("severity", [0, *self.levels]),
            y="accuracy",
            series=series,
            y_range=(0.0, 1.0),
        )

    def _errors_block(self, errors: Errors) -> Block:
        return sections.matrix(
            "Error by corruption and severity",
            self.corruptions,
            [str(level) for level in self.levels],
            [errors.corrupted[name] for name in self.corruptions],
            row_label="corruption",
            column_label="severity",
        )

    def _table(self, errors: Errors) -> Block:
        found = self._against(errors)
        columns = ["corruption", "mean error", "more than clean"]
        rows: list[list[Any]] = []
        for name, each in errors.corrupted.items():
            mean = sum(each) / len(each)
            rows.append([name, mean, mean - errors.clean])
        rows.append(["mean", errors.mean, errors.mean - errors.clean])
        if found:
            columns += ["CE", "relative CE"]
            for row in rows[:-1]:
                row += [found["ce"].get(row[0]), found["relative_ce"].get(row[0])]
            rows[-1] += [found["mce"], found["relative_mce"]]
        return sections.table("Errors by corruption", columns, rows, note=self._note(found))

    def _note(self, found: Mapping[str, Any]) -> str:
        assert self.labels is not None
        note = f"{len(self.labels)} examples of the {self.split} split (seed {self.seed})."
        if not found:
            return f"{note} Without a reference there is no mCE."
        return (
            f"{note} CE: sum of the errors over severities, in percent of that of {found['reference']}; the row "
            "`mean` has mCE and relative mCE, over the 15 usual corruptions."
        )


def _wrong(answers: Tensor, labels: Tensor) -> float:
    return float((answers != labels).double().mean())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
