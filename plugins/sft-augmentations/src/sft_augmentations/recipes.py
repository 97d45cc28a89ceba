"""What excludes each other in a recipe; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sft_augmentations import libraries
from sft_engine import Problem

MIXING = ("mixup", "cutmix")


def problems(recipe: Any) -> Iterator[Problem]:
    """Yield a problem for each pair of components of this package that cannot be together."""
    yield from _class_weights(recipe)
    yield from libraries.problems(recipe)
    augmentations = [each for each in recipe.components if each.kind == "augmentation"]
    mixing = [each.use for each in augmentations if each.use in MIXING]
    for each in augmentations:
        if each.use == "augmix" and each.options.get("consistency") and mixing:
            yield Problem(
                f"{each.key}.consistency",
                f"the term compares predictions for one image, and `{mixing[0]}` mixes two",
                f"remove `{mixing[0]}`, or leave `consistency` out",
            )


def _class_weights(recipe: Any) -> Iterator[Problem]:
    """Weights of classes are said once: by one component, or by the task."""
    ours = [each for each in recipe.components if each.use == "class-weights"]
    for each in ours[1:]:
        yield Problem(
            each.key, f"`class-weights` is there twice (also {ours[0].key})", "remove one"
        )
    task = next((each for each in recipe.components if each.kind == "task"), None)
    given = task.options.get("class_weights", "none") if task else "none"
    if ours and given != "none":
        yield Problem(
            ours[0].key,
            f"`class-weights` beside task.class_weights = {given!r}: both weigh the classes",
            "remove one of them",
        )
