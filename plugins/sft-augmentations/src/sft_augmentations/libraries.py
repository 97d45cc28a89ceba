"""Libraries that components of this package need, and what is in kornia; imports none of them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft_engine import Problem
from sft_engine.sentences import suggest

NEEDED = {
    "time-stretch": ("audiomentations", "audio"),
    "pitch-shift": ("audiomentations", "audio"),
    "kornia": ("kornia", "kornia"),
}
"""Component, the library that it needs, and the extra that brings it."""

UNFIT = {
    "Normalize": "the backbone normalises",
    "Denormalize": "the backbone normalises",
    "RandomMixUpV2": "it mixes labels: use `mixup`",
    "RandomCutMixV2": "it mixes labels: use `cutmix`",
    "RandomMosaic": "it mixes examples, and leaves their labels as they are",
    "RandomTransplantation": "it mixes examples, and leaves their labels as they are",
    "PatchMix": "it mixes examples, and leaves their labels as they are",
    "RandomDissolving": "it downloads a model of its own",
}
"""Transforms of kornia that do not belong on the images of a batch, and why."""


def problems(recipe: Any) -> Iterator[Problem]:
    """Yield a problem for each library that is missing, and for each transform that kornia has not."""
    for each in recipe.components:
        library, extra = NEEDED.get(each.use, ("", "")) if each.kind == "augmentation" else ("", "")
        if library and find_spec(library) is None:
            yield Problem(
                f"{each.key}.use",
                f'"{each.use}" needs {library}, which this Python lacks',
                f"pip install 'sft-augmentations[{extra}]'",
            )
        elif each.use == "kornia":
            yield from _transforms(each)


def _transforms(component: Any) -> Iterator[Problem]:
    tables = component.options.get("transforms", ())
    if not isinstance(tables, list | tuple):
        return  # the engine says so
    for index, table in enumerate(tables):
        problem = kornia_problem(table) if isinstance(table, Mapping) else None
        if problem:
            yield Problem(f"{component.key}.transforms[{index}]", *problem)


def kornia_problem(table: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with the name of a transform, and a hint; None if nothing is."""
    name = table.get("name")
    if name is None:
        return "has no name", 'such as { name = "RandomHorizontalFlip", p = 0.5 }'
    if name in UNFIT:
        return f'"{name}" does not belong here', UNFIT[name]
    known = kornia_names()
    if name not in known:
        hint = suggest(str(name), known) or "see kornia.augmentation"
        return f'"{name}" is no transform of images in kornia', hint
    return None


@functools.cache
def kornia_names() -> frozenset[str]:
    """Return the transforms of images that the installed kornia has, read from its source.

    kornia itself takes seconds to import, and brings torch.
    """
    found = find_spec("kornia")
    if found is None or not found.submodule_search_locations:
        return frozenset()
    file = Path(found.submodule_search_locations[0]) / "augmentation" / "__init__.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "kornia.augmentation._2d"
        for alias in node.names
    ) - set(UNFIT)
