"""How large gradients, updates and distances are beside the weights, for each layer group.

Gradients are measured whole. Weights are compared at places spread evenly over each matrix: a copy of
all of them would cost as much memory as the model. Nothing waits for the device before a record is due.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine.flow import Clock, Run

POINTS = 100
"""Times in a run that gradients and updates are measured, at most."""
PLACES = 1024
"""Numbers of a parameter that are compared."""
_MATRIX = 2


class Vitals:
    """Measures the layer groups of a run.

    Args:
        run: Its weights are those of the start.
        log_every: Steps between records; every so many of them is measured.
    """

    def __init__(self, run: Run, log_every: int) -> None:
        self.run = run
        self.every = log_every * math.ceil(run.clock.total_steps / (POINTS * log_every))
        self._groups = [group.name for group in run.layer_groups]
        self._group = {
            name: index for index, group in enumerate(run.layer_groups) for name in group.parameters
        }
        self._compared = _compared(run)
        # Looked up once: going through all modules takes as long as a small step.
        self._owners = {name: _owner(run.model, name) for name, _ in run.model.named_parameters()}
        self._start = self._norms(self._places())
        self._first = [place.clone() for place in self._places()]
        self._held: list[Tensor] = []
        self._gradients: tuple[list[int], Tensor] | None = None
        self._updates: Tensor | None = None

    def is_due(self, clock: Clock) -> bool:
        """Say whether the step that begins shall be measured: a record follows it."""
        after = clock.step + 1
        return after % self.every == 0 or after == clock.phase_end

    # --- around a step ---------------------------------------------------------------------------

    def before_step(self, norm: Tensor) -> None:
        """Note gradients, and weights as they are.

        Args:
            norm: Of the whole gradient before clipping: the unit of the norms by group.
        """
        gradients = [(name, getattr(*owner).grad) for name, owner in self._owners.items()]
        found = [(self._group[name], grad) for name, grad in gradients if grad is not None]
        if found:
            norms = torch._foreach_norm([grad for _, grad in found])  # noqa: SLF001 (as in clipping)
            squares = torch.stack([each.float() for each in norms]).square()
            whole = squares.sum().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            scale = norm.to(squares.device).float() / whole
            self._gradients = [group for group, _ in found], squares * scale.square()
        self._held = [place.clone() for place in self._places()]

    def after_step(self) -> None:
        """Note by how much the weights have moved."""
        places = self._places()
        moved = torch._foreach_sub(places, self._held)  # noqa: SLF001
        self._updates = torch.stack([self._norms(moved), self._norms(self._held)])
        self._held = []

    def reading(self) -> dict[str, float]:
        """Return what the last measured step gave, and forget it: norms, and updates over weights."""
        found: dict[str, float] = {}
        if self._gradients is not None:
            groups, squares = self._gradients
            sums = self._by_group(groups, squares.tolist())
            found |= {f"grad_norm/{name}": math.sqrt(value) for name, value in sums.items()}
        if self._updates is not None:
            moved, held = self._updates.tolist()
            under = [max(each) for each in zip(held, self._start.tolist(), strict=True)]
            ratios = self._ratios(moved, under)
            trained = {name.removeprefix("grad_norm/") for name in found}
            found |= {f"update/{k}": v for k, v in ratios.items() if k in trained}
        self._gradients = self._updates = None
        return found

    # --- since the start -------------------------------------------------------------------------

    def position(self) -> dict[str, dict[str, float]]:
        """Return the way from the start over the weights then (`drift`), and weights over those then."""
        places = self._places()
        moved = self._norms(torch._foreach_sub(places, self._first)).tolist()  # noqa: SLF001
        now, start = self._norms(places).tolist(), self._start.tolist()
        return {"drift": self._ratios(moved, start), "growth": self._ratios(now, start)}

    # --- parts -----------------------------------------------------------------------------------

    def _places(self) -> list[Tensor]:
        owners = (self._owners[name] for name, _, _ in self._compared)
        return [_spread(getattr(*owner).detach()) for owner in owners]

    def _norms(self, places: Sequence[Tensor]) -> Tensor:
        """Estimate the squared norm of each parameter from the places looked at."""
        if not places:
            return torch.zeros(0)
        norms = torch.stack([each.float() for each in torch._foreach_norm(list(places))])  # noqa: SLF001
        shares = torch.tensor([share for _, _, share in self._compared], device=norms.device)
        return norms.square() * shares

    def _ratios(self, over: list[float], under: list[float]) -> dict[str, float]:
        """Return the ratio of norms by group, of groups whose weights were not zero."""
        groups = [group for _, group, _ in self._compared]
        above, below = self._by_group(groups, over), self._by_group(groups, under)
        started = self._by_group(groups, self._start.tolist())
        return {k: math.sqrt(above[k] / below[k]) for k in above if below[k] > 0 and started[k] > 0}

    def _by_group(self, groups: list[int], values: list[float]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for index in sorted(set(groups)):
            own = [v for group, v in zip(groups, values, strict=True) if group == index]
            sums[self._groups[index]] = sum(own)
        return sums


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter, and what it calls it."""
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own


def _compared(run: Run) -> list[tuple[str, int, float]]:
    """Return name, layer group and numbers for each place looked at, of what is compared.

    Matrices, where a layer group has any: biases and norm weights begin at zero or one and may go far.
    """
    sizes = {name: (p.ndim, p.numel()) for name, p in run.model.named_parameters()}
    compared: list[tuple[str, int, float]] = []
    for index, group in enumerate(run.layer_groups):
        names = [name for name in group.parameters if sizes[name][1]]
        matrices = [name for name in names if sizes[name][0] >= _MATRIX]
        for name in matrices or names:
            size = sizes[name][1]
            compared.append((name, index, size / min(size, PLACES)))
    return compared


def _spread(weights: Tensor) -> Tensor:
    """Return `PLACES` numbers of a parameter, spread evenly, without copying all of it."""
    size = weights.numel()
    number = min(size, PLACES)
    dense = weights.is_contiguous() or (
        weights.ndim == 4 and weights.is_contiguous(memory_format=torch.channels_last)  # noqa: PLR2004
    )
    if not dense:
        weights = weights.flatten()
    return weights.as_strided((number,), (size // number,), weights.storage_offset())


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return tensors as numpy arrays."""
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in values.items()
    }
