"""Layer groups of any image model: stem, stages, head, without code for one architecture.

Three questions, three answers. What belongs together: the library's own grouping, else the structure of
the modules. In what order: that of first use in a forward pass. What is the head: the layers that were
made for the task.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING

from sft_engine.components import LayerGroup

if TYPE_CHECKING:
    from torch import nn

_DOMINANT = 0.6
"""Share of a model's layers from which on a module is no stage but holds the stages."""
_STAGES = 3
"""A network with as many other stages is in stages already, however large one of them is."""
_MATRIX = 2
"""Dimensions from which on a parameter is more than a bias, a scale or a norm."""


def layer_groups(
    model: nn.Module,
    uses: Mapping[str, int],
    head: Collection[str],
    grouping: Mapping[str, Hashable] | None = None,
) -> list[LayerGroup]:
    """Return the layer groups in forward order; every parameter is in exactly one.

    A part without any matrix, such as the norm behind a convolution, joins the part before it. The first
    group is `stem`, the last one `head`, the others have the name of their module.

    Args:
        model: Any model.
        uses: The result of `sft_engine.first_use.first_use`.
        head: Names of the parameters of the head.
        grouping: Which parameters belong together; those that it leaves out, and all of them where it is
            None, go by `stages`.
    """
    parameters = dict(model.named_parameters())
    own = set(head)
    trunk = [name for name in parameters if name not in own]
    places = positions(list(parameters), uses)
    parts = stages(model)
    owners = _owners(trunk, parts, grouping or {})
    ordered = _units(owners, places)
    if grouping and _overlaps(ordered, places):
        # CaiT's own grouping puts two late blocks together with two early ones.
        by_module = _owners(trunk, parts, {})
        if not _overlaps(_units(by_module, places), places):
            owners, ordered = by_module, _units(by_module, places)
    solid = [any(parameters[n].ndim >= _MATRIX for n in names) for names in ordered]
    groups = _joined(ordered, solid) or [[]]
    titles = ["stem", *(_title(names, trunk) for names in groups[1:])]
    starts = [min((places[n] for n in names), default=0) for names in groups]
    for name in (name for name, owner in owners.items() if owner is None):
        before = [index for index, start in enumerate(starts) if start <= places[name]]
        groups[before[-1] if before else 0].append(name)
    groups.append([name for name in parameters if name in own])
    titles.append("head")
    pairs = zip(titles, groups, strict=True)
    return [LayerGroup(title, tuple(names)) for title, names in pairs if names]


def positions(names: list[str], uses: Mapping[str, int]) -> dict[str, int]:
    """Return the place of every parameter; one without a known use stands by its neighbour."""
    place = min(uses.values(), default=0)
    found = {}
    for name in names:
        place = uses.get(name, place)
        found[name] = place
    return found


def _layers(module: nn.Module) -> int:
    """Return how many modules below and including this one own parameters."""
    return sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules())


def stages(model: nn.Module) -> list[str]:
    """Return the paths of the modules that a model is made of, in the order of registration.

    A module that holds most of the layers is opened (`features`, `encoder.layers`), unless there are
    several stages beside it: the third of ResNet-152 has 36 of 50 blocks and is one stage all the same.
    """
    found = {name: child for name, child in model.named_children() if _layers(child)}
    total = _layers(model)
    while True:
        several = sum(_layers(module) > 1 for module in found.values())
        large = [
            (path, module)
            for path, module in found.items()
            if _layers(module) > max(1, _DOMINANT * total) and several <= _STAGES
        ]
        if not large:
            return list(found)
        path, module = large[0]
        inside = {f"{path}.{name}": child for name, child in module.named_children()}
        opened = {name: child for name, child in inside.items() if _layers(child)}
        found = {
            key: value
            for old, kept in found.items()
            for key, value in (opened.items() if old == path else [(old, kept)])
        }


def _owners(
    names: list[str], paths: list[str], grouping: Mapping[str, Hashable]
) -> dict[str, Hashable]:
    """Return what each parameter belongs to; None for those of the model itself, such as class tokens."""
    return {
        name: grouping[name]
        if name in grouping
        else next((path for path in paths if name.startswith(f"{path}.")), None)
        for name in names
    }


def _units(owners: Mapping[str, Hashable], places: Mapping[str, int]) -> list[list[str]]:
    """Return the parameters of each owner, in the order of first use."""
    units: dict[Hashable, list[str]] = {}
    for name, owner in owners.items():
        if owner is not None:
            units.setdefault(owner, []).append(name)
    return sorted(units.values(), key=lambda names: min(places[name] for name in names))


def _overlaps(units: list[list[str]], places: Mapping[str, int]) -> bool:
    """Whether a part begins before the one in front of it has ended, as parallel branches do."""
    return any(
        min(places[name] for name in after) < max(places[name] for name in before)
        for before, after in itertools.pairwise(units)
    )


def _joined(units: list[list[str]], solid: list[bool]) -> list[list[str]]:
    """Join units without a matrix to the one before, at the beginning to the one after."""
    groups: list[list[str]] = []
    any_solid = False
    for names, is_solid in zip(units, solid, strict=True):
        if groups and not (is_solid and any_solid):
            groups[-1] += names
        else:
            groups.append(list(names))
        any_solid = any_solid or is_solid
    return groups


def _title(names: list[str], everything: list[str]) -> str:
    """Return the shortest path that leads to the first of these parameters and to no other group.

    What a library has in its `head` before the last layer is `pre_logits`: the head is that layer.
    """
    others = [name for name in everything if name not in set(names)]
    parts = names[0].split(".")
    for length in range(1, len(parts)):
        path = ".".join(parts[:length])
        if not any(name.startswith(f"{path}.") for name in others):
            return "pre_logits" if path == "head" else path
    return names[0]
