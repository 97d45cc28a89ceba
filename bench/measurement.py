"""What every benchmark script shares: the timer, the result and its command line."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

Watcher = Callable[["nn.Module"], None]


@dataclass(frozen=True)
class Result:
    """One measurement of one variant.

    `seconds` is the figure that ratios are made of; `details` are further numbers that are
    reported beside it (name -> value).
    """

    benchmark: str
    variant: str
    seconds: float
    details: dict[str, float] = field(default_factory=dict)

    def report(self, path: Path | None) -> None:
        """Print the result, and write it as JSON to `path` if one is given."""
        details = "  ".join(f"{name} {value:.4g}" for name, value in self.details.items())
        print(f"{self.benchmark} {self.variant}: {readable(self.seconds)}  {details}", flush=True)
        if path is not None:
            path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def readable(seconds: float) -> str:
    """A duration in the unit that suits it: `1.15 ms`, `14.4 s`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"


class Timer:
    """Times one training call, and notes when each of its steps began.

    Used as a context manager around the call that trains. A variant that builds its optimizer
    inside that call is charged for it, so quote `seconds_per_step` where set-up must not count.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.step_starts: list[float] = []
        self._start = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start

    def watch(self, model: nn.Module) -> None:
        """Note the time of every forward pass of `model` in training mode."""

        def note(module: nn.Module, inputs: Any) -> None:
            if module.training:
                self.step_starts.append(time.perf_counter())

        model.register_forward_pre_hook(note)

    def seconds_per_step(self, skip: int) -> float:
        """Mean time from one step's forward to the next one's, the first `skip` left out."""
        starts = self.step_starts[skip:]
        if len(starts) < 2:
            raise ValueError(f"{len(self.step_starts)} steps seen: too few to skip {skip}")
        return (starts[-1] - starts[0]) / (len(starts) - 1)


def watched(model: Model, watchers: list[Watcher]) -> Model:
    """The model, after each watcher has attached its hook to it."""
    for watch in watchers:
        watch(model)
    return model


def common_arguments(description: str) -> argparse.ArgumentParser:
    """The options that paired.py passes to every benchmark script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=1, help="threads that torch may use")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and tokens")
    parser.add_argument("--result", type=Path, help="file to write the result to, as JSON")
    return parser


def quiet_start(threads: int) -> None:
    """Make a process ready to measure: offline, the threads asked for, late imports done.

    The first torch optimizer that a process builds imports torch._dynamo, which takes seconds.
    Variants differ in whether they build theirs inside the timed call, so it is done here.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(threads)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def require_threads(threads: int) -> None:
    """Stop if the variant changed the number of threads: its time would not be comparable."""
    import torch

    if torch.get_num_threads() != threads:
        raise SystemExit(f"the variant ran on {torch.get_num_threads()} threads, not {threads}")
