"""What excludes each other in a recipe; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sft_engine import Problem

MIXING = ("mixup", "cutmix")


def problems(recipe: Any) -> Iterator[Problem]:
    """Yield a problem for each pair of components of this package that cannot be together."""
    augmentations = [each for each in recipe.components if each.kind == "augmentation"]
    mixing = [each.use for each in augmentations if each.use in MIXING]
    for each in augmentations:
        if each.use == "augmix" and each.options.get("consistency") and mixing:
            yield Problem(
                f"{each.key}.consistency",
                f"the term compares predictions for one image, and `{mixing[0]}` mixes two",
                f"remove `{mixing[0]}`, or leave `consistency` out",
            )
