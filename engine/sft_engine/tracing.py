"""What each hook of each component did in a few steps: how often, how long, and what it changed.

Before and after each call the tracer looks at the same few aspects of the run. Looking takes time, so
the seconds it reports are those of the calls alone, and nobody traces a run that counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.flow import Batch, LossTerm, Run, Verdict, View
from sft_engine.hook_rules import RUN_HOOKS, hooks_of
from sft_engine.proof import check_short
from sft_engine.training import Silent, train

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine.verbs import RecipeLike

MOST_NAMES = 3


@dataclass
class HookTrace:
    """One hook of one component.

    Args:
        component: Where it stands in the recipe, such as `regularizer[0]`.
        name: Its name in the catalog.
        hook: Such as `sft_step_end`.
        calls: How often it was called.
        seconds: In all calls together; of a wrapper without what it wraps.
        changes: What it changed or answered, each said once, with the number of calls.
    """

    component: str
    name: str
    hook: str
    calls: int = 0
    seconds: float = 0.0
    changes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """A traced run.

    Args:
        steps: Optimizer steps taken.
        seconds: Of the whole run, the tracer's own looks included.
        hooks: In the order of the recipe, then of the manual; those never called too.
    """

    steps: int
    seconds: float
    hooks: tuple[HookTrace, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def trace(recipe: RecipeLike, *, overrides: Sequence[str] = (), steps: int = 5) -> Trace:
    """Train a few steps by a recipe in a temporary folder, and watch its hooks.

    Args:
        recipe: A file, or a recipe that was loaded.
        overrides: `KEY=VALUE` texts as for `--set`.
        steps: Optimizer steps; in a recipe with phases as many of each as is its share.

    Raises:
        SftError: whatever stopped the run.
    """
    planned = check_short(recipe, overrides, steps)
    tracer = _Tracer()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sft-trace-") as scratch:
        train(planned, Path(scratch, "run"), progress=tracer, monitor=tracer)
    return Trace(tracer.steps, time.perf_counter() - began, tuple(tracer.rows()))


class _Tracer(Silent):
    """A monitor; a progress, too, because that is how it gets to see the run."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._seen: dict[tuple[str, str], HookTrace] = {}

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._run.clock.step if self._run else 0

    def start(self, run: Run, precision: str) -> None:  # noqa: ARG002
        """Keep the run, for hooks that do not ask for it."""
        self._run = run

    def __call__(
        self, key: str, hook: str, arguments: Mapping[str, Any]
    ) -> Callable[[Any, float], None]:
        run = arguments.get("run") or self._run
        before = _look(run, arguments)

        def done(answer: Any, seconds: float) -> None:
            row = self._row(key, hook)
            row.calls += 1
            row.seconds += seconds
            after = _look(run, arguments)
            if hook == "sft_micro_step":  # the inner step, which it wraps, makes the gradients
                after.pop("gradients", None)
            for change in [*_differences(before, after), *_answers(answer)]:
                row.changes[change] = row.changes.get(change, 0) + 1

        return done

    def _row(self, key: str, hook: str) -> HookTrace:
        return self._seen.setdefault((key, hook), HookTrace(key, "", hook))

    def rows(self) -> list[HookTrace]:
        """Return every hook that a component of the run has, called or not."""
        rows = []
        for active in self._run.active if self._run else []:
            has = hooks_of(active.component, RUN_HOOKS, str(active.planned))
            for hook in (name for name in RUN_HOOKS if name in has):
                row = self._row(active.key, hook)
                row.name = active.planned.name
                rows.append(row)
        return rows


# --- What changed ----------------------------------------------------------------------------------

Aspects = dict[str, dict[str, Any]]
"""Aspect to name to a value that differs if the thing behind it changed."""


def _look(run: Run | None, arguments: Mapping[str, Any]) -> Aspects:
    """Look at all that a hook may change."""
    aspects: Aspects = {}
    if run is not None:
        named = dict(run.model.named_parameters())
        aspects["requires_grad"] = {name: p.requires_grad for name, p in named.items()}
        aspects["weights"] = _prints(dict(run.model.state_dict()))
        aspects["gradients"] = _prints({n: p.grad for n, p in named.items() if p.grad is not None})
        aspects["control"] = dict(vars(run.control))
        aspects["learning rate"] = _rates(run)
    match arguments:
        case {"batch": Batch() as batch}:
            aspects["batch"] = _prints({**batch.inputs, **batch.targets})
        case {"groups": list() as groups}:
            # A dictionary: names of groups are the names of their first parameters.
            aspects["parameter group"] = {g.names[0]: repr(g) for g in groups if g.names}
        case {"values": dict() as values}:
            aspects["metric"] = {name: repr(value) for name, value in values.items()}
        case {"report": dict() as report}:
            aspects["report"] = {key: repr(value) for key, value in report.items()}
        case {"data": data} if hasattr(data, "transforms"):
            aspects["split"] = {"weights": id(data.weights), "transforms": len(data.transforms)}
    return aspects


def _prints(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint of each tensor: shape, sum and norm, in double precision."""
    return {
        name: (tuple(t.shape), *_sum_and_norm(t))
        for name, t in tensors.items()
        if hasattr(t, "shape")
    }


def _sum_and_norm(tensor: Tensor) -> tuple[str, str]:
    flat = tensor.detach().double()
    # Text, because nan is not equal to itself.
    return repr(flat.sum().item()), repr(flat.norm().item())


def _rates(run: Run) -> dict[str, Any]:
    # There is no optimizer yet in the first hooks.
    groups = getattr(run.optimizer, "param_groups", [])
    return {f"of group {i}": group["lr"] for i, group in enumerate(groups)}


def _differences(before: Aspects, after: Aspects) -> list[str]:
    said = []
    for aspect, new in after.items():
        old = before.get(aspect, {})
        changed = [name for name in new if name not in old or old[name] != new[name]]
        changed += [f"-{name}" for name in old if name not in new]
        if changed:
            said.append(f"{aspect}: {_listed(changed)}")
    return said


def _answers(answer: Any) -> list[str]:
    """Say what a hook answered: loss terms, views, a verdict."""
    match answer:
        case Verdict():
            return [f"verdict: {answer.action.name.lower().replace('_', ' ')}"]
        case [*items] if items and all(isinstance(item, (LossTerm, View)) for item in items):
            what = "loss term" if isinstance(items[0], LossTerm) else "view"
            return [f"{what}: {_listed([item.name for item in items])}"]
        case BaseException():
            return [f"raised {type(answer).__name__}"]
    return []


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
