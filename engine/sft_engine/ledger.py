"""What the loop remembers between two records: loss terms, gradient norms, counts.

Values stay on the device as they are; the host waits for them only when a record is due.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import ranks

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.flow import Run


@dataclass
class Ledger:
    """Terms and norms since the last record.

    Args:
        run: Whose loop it is.
    """

    run: Run
    _terms: list[tuple[str, Tensor, float]] = field(default_factory=list)
    _norms: list[Tensor] = field(default_factory=list)
    _begins: list[int] = field(default_factory=list)  # of each window, in `_terms`
    _peak: float = 0.0
    _measured: dict[str, float] = field(default_factory=dict)
    _windows: int = 0
    _items: float = 0.0
    _paused: bool = False
    _since: float = field(default_factory=time.perf_counter)

    def begin_window(self, items: float) -> None:
        """Count a window and its items over all ranks."""
        self._windows += 1
        self._items += items
        self._begins.append(len(self._terms))

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Note this micro-batch's sum of a term, and the factor that makes it a part of the mean."""
        if not self._paused:
            self._terms.append((name, value.detach(), share))

    def mark(self) -> int:
        """Return a mark that `forget` takes."""
        return len(self._terms)

    def forget(self, mark: int) -> None:
        """Drop the terms since a mark, because the window is begun again."""
        del self._terms[mark:]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Note no term inside: the same window is computed once more."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def see(self, norm: Tensor) -> None:
        """Note the norm of a window's gradient."""
        self._norms.append(norm.detach())

    def measured(self, values: dict[str, float]) -> None:
        """Note what is to be in the next record."""
        self._measured = values

    def overlook(self) -> None:
        """Take the last norm back, because a component has dealt with it."""
        self._norms.pop()

    def norm(self) -> float:
        """Return the sum of all norms not looked at: not finite if one of them is not.

        On a CPU every norm is looked at when it comes, and only the latest is kept.
        """
        if not self._norms:
            return 0.0
        last = self._norms[-1]
        if last.device.type == "cpu":
            total = highest = float(last.item())
        else:
            norms = torch.stack(self._norms)
            total, highest = torch.stack([norms.sum(), norms.max()]).tolist()
        self._peak = max(self._peak, highest)
        self._norms = [last]
        return total

    def restart_clock(self) -> None:
        """Leave out what took time beside training."""
        self._since = time.perf_counter()

    def state(self) -> list[dict[str, Any]]:
        """Return what each rank remembers, as JSON values (collective)."""
        own = {
            "terms": [
                [name, float(value), str(value.dtype).removeprefix("torch."), share]
                for name, value, share in self._terms
            ],
            "norms": [float(norm) for norm in self._norms],
            "begins": self._begins,
            "peak": self._peak,
            "windows": self._windows,
            "items": self._items,
            "seconds": time.perf_counter() - self._since,
        }
        return ranks.everyones(self.run.accelerator, own)

    def restore(self, everyones: Sequence[dict[str, Any]]) -> None:
        """Take back what `state` returned; forget it if it is of another number of ranks."""
        accelerator = self.run.accelerator
        if len(everyones) != accelerator.num_processes:
            return
        own, device = everyones[accelerator.process_index], self.run.device
        self._terms = [
            (name, torch.tensor(value, dtype=getattr(torch, dtype), device=device), share)
            for name, value, dtype, share in own["terms"]
        ]
        self._norms = [torch.tensor(norm, device=device) for norm in own["norms"]]
        self._begins, self._peak = list(own["begins"]), own["peak"]
        self._windows, self._items = own["windows"], own["items"]
        self._since = time.perf_counter() - own["seconds"]

    def record(self) -> dict[str, Any] | None:
        """Return the mean of every term since the last record, and forget them; None without any."""
        if not self._terms:
            return None
        run, clock = self.run, self.run.clock
        totals, highest = self._totals()
        means = {name: total / self._windows for name, total in sorted(totals.items())}
        elapsed = time.perf_counter() - self._since
        record = {
            "kind": "train",
            "step": clock.step,
            **run.phase_note,
            "epoch": clock.epochs,
            "loss": _sum(means.values()),
            **{f"loss/{name}": mean for name, mean in means.items()},
            "loss_max": highest,
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "grad_norm": self._norms[-1].item() if self._norms else 0.0,
            "grad_norm_max": self._peak,
            **self._measured,
            "examples_per_second": self._items / elapsed if elapsed else 0.0,
        }
        self._terms, self._windows, self._items = [], 0, 0.0
        self._begins, self._peak, self._measured = [], 0.0, {}
        return record

    def _totals(self) -> tuple[dict[str, float], float]:
        """Sum terms by name, over all ranks; a term may come up on some of them only.

        Returns:
            The sums, and the highest loss of a window.
        """
        values = torch.stack([value for _, value, _ in self._terms]).double().tolist()
        parts: dict[str, list[float]] = {}
        shares = [value * share for (_, _, share), value in zip(self._terms, values, strict=True)]
        for (name, _, _), share in zip(self._terms, shares, strict=True):
            parts.setdefault(name, []).append(share)
        own = {name: _sum(each) for name, each in parts.items()}
        windows = [_sum(shares[i:j]) for i, j in itertools.pairwise([*self._begins, len(shares)])]
        everyones = ranks.everyones(self.run.accelerator, (own, windows))
        names = sorted(set().union(*(each for each, _ in everyones)))
        sums = {name: _sum(each.get(name, 0.0) for each, _ in everyones) for name in names}
        whole = [_sum(each) for each in zip(*(each for _, each in everyones), strict=True)]
        return sums, _highest(whole)


def _highest(values: Sequence[float]) -> float:
    """Return the highest number, NaN if there is one."""
    return next(filter(math.isnan, values), max(values, default=0.0))


def _sum(values: Iterable[float]) -> float:
    """Add numbers exactly; infinite ones and NaN as they are."""
    numbers = list(values)
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)
