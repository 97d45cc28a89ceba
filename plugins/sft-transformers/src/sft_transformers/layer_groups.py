"""Layer groups of any model: embeddings, blocks, head, without code for one architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sft_engine import LayerGroup

FEATURES = "feature_encoder"
"""Group of the convolutions that an audio model begins with: as a rule they stay as pretrained."""

_NORMS = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class _Block:
    """A block, and the path of the list that it is an element of."""

    stack: str
    path: str


def _elements(stack: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the elements of a list of modules; lists inside it are opened (Funnel)."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        path = f"{stack}.{name}"
        found += _elements(path, child) if isinstance(child, nn.ModuleList) else [(path, child)]
    return found


def _layers(module: nn.Module) -> int:
    """Return how many modules below and including this one own parameters."""
    return sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules())


def _convolves(module: nn.Module) -> bool:
    """Whether a module has convolutions and nothing else that mixes, as those that read a waveform."""
    owners = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return bool(owners) and all(isinstance(m, (nn.Conv1d, *_NORMS)) for m in owners)


def _first_convolutions(model: nn.Module, positions: Mapping[str, int]) -> set[str]:
    """Return the parameters of the list of convolutions that the model begins with, if it does."""
    start = min(positions.values(), default=0)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and _convolves(module):
            names = {f"{path}.{name}" for name, _ in module.named_parameters()}
            if min(positions[name] for name in names) == start:
                return names
    return set()


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a list of blocks; a block is made of several layers."""
    elements = [element for _, element in _elements("", module)]
    if _convolves(module):
        return False
    if not elements or min(_layers(element) for element in elements) < 2:  # noqa: PLR2004 - several
        return False
    alike = len(elements) > 1 and len({type(element) for element in elements}) == 1
    return isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and alike)


def _blocks(model: nn.Module, path: str = "") -> list[_Block]:
    """Return the elements of the outermost lists of blocks, in the order of registration."""
    found: list[_Block] = []
    for name, child in model.named_children():
        if _is_stack(child):
            found += [_Block(f"{path}{name}", inner) for inner, _ in _elements(path + name, child)]
        else:
            found += _blocks(child, f"{path}{name}.")
    return found


def _positions(names: list[str], uses: Mapping[str, int]) -> dict[str, int]:
    """Return the place of every parameter; one without a known use stands by its neighbour."""
    place = min(uses.values(), default=0)
    positions = {}
    for name in names:
        place = uses.get(name, place)
        positions[name] = place
    return positions


def _labels(blocks: list[_Block]) -> list[str]:
    """Name blocks `block.0`, or `encoder.block.0` and `decoder.block.0` where there are both."""
    sides = [
        next((part for part in ("encoder", "decoder") if part in block.stack.split(".")), "")
        for block in blocks
    ]
    both = {"encoder", "decoder"} <= set(sides)
    labels: list[str] = []
    for side in sides:
        prefix = f"{side}.block" if both and side else "block"
        labels.append(f"{prefix}.{sum(label.startswith(f'{prefix}.') for label in labels)}")
    return labels


def layer_groups(model: nn.Module, uses: Mapping[str, int]) -> list[LayerGroup]:
    """Return the layer groups in forward order; every parameter is in exactly one.

    Blocks are the elements of the outermost lists of modules. A list of convolutions that the model begins
    with is `feature_encoder`. What else is used before the first block is `embeddings`; what is used after the last one (final norm, pooler, classifier) is `head`; what is
    used between two blocks joins the later one. A tied parameter belongs to its first user.

    Args:
        model: Any model; without blocks all of it is `head`.
        uses: The result of `first_use`.
    """
    positions = _positions([name for name, _ in model.named_parameters()], uses)
    found = [
        (block, [n for n in positions if n.startswith(f"{block.path}.")])
        for block in _blocks(model)
    ]
    found = [(block, names) for block, names in found if names]
    found.sort(key=lambda item: min(positions[name] for name in item[1]))
    starts = [min(positions[name] for name in names) for _, names in found]
    ends = [max(positions[name] for name in names) for _, names in found]
    features = _first_convolutions(model, positions)
    labels = ["embeddings", *_labels([block for block, _ in found]), "head"]
    owner = {name: index for index, (_, names) in enumerate(found, 1) for name in names}
    groups: dict[str, list[str]] = {label: [] for label in (FEATURES, *labels)}
    for name, position in positions.items():
        label = labels[owner.get(name, _place(position, starts, ends))]
        groups[FEATURES if name in features else label].append(name)
    return [LayerGroup(label, tuple(names)) for label, names in groups.items() if names]


def _place(position: int, starts: list[int], ends: list[int]) -> int:
    """Return the index of the group for a parameter outside blocks: 0 is embeddings, -1 head."""
    if starts and position <= starts[0]:
        return 0
    return next((index for index, end in enumerate(ends, 1) if position <= end), -1)
