"""What activations depend on, and what stands in the way of replay: told by names and bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import launch, sharding
from sft_engine.records import library_versions
from sft_engine.replay.cut import Cut, frozen_tensors
from sft_engine.replay.trace import Refused
from sft_engine.state import digest

if TYPE_CHECKING:
    from torch import nn

    from sft_engine.flow import Run, Split
    from sft_engine.replay.trace import Probe

_IN_TRAINING = ("sft_batch", "sft_micro_step", "sft_loss_terms")
_IN_EVALUATION = ("sft_eval_batch",)
_WRITERS = (
    "sft_epoch_start",
    "sft_epoch_end",
    "sft_step_start",
    "sft_step_verdict",
    "sft_step_end",
    "sft_gradients",
    "sft_eval_views",
    "sft_metrics",
    *_IN_TRAINING,
    *_IN_EVALUATION,
)
_LIBRARIES = ("torch.", "transformers.", "timm.", "accelerate.", "torchvision.")


# --- what stands in the way -----------------------------------------------------------------------


def bar(run: Run, split: Split | None) -> str:
    """Return why the training batches of a split cannot be replayed; empty if nothing is known."""
    if sharding.is_sharded(run.accelerator):
        return "FSDP spreads the weights over processes, and gathers them for the whole model"
    if run.plan.train.compile:
        return "`train.compile` makes one program of the whole model"
    if split is None:
        return "the batch is of no split"
    if split.transforms:
        return "augmentations make another input of every example each time"
    reader = _reader(run, _IN_TRAINING)
    return f"{reader} may read inputs or hidden states" if reader else ""


def bar_evaluation(run: Run) -> str:
    """Return who sees evaluation batches and has not said that it needs no inputs."""
    return _reader(run, _IN_EVALUATION)


def _reader(run: Run, hooks: tuple[str, ...]) -> str:
    if all(getattr(run.hooks, name) is None for name in hooks):
        return ""
    for active in run.active:
        listens = [name for name in hooks if hasattr(active.component, name)]
        capabilities = getattr(active.component, "capabilities", None)
        if listens and not getattr(capabilities, "replayable", False):
            return f"{active.planned} (`{listens[0]}`)"
    return ""


def refuse_listeners(cut: Cut) -> None:
    """Raise Refused if somebody else than a library listens to a module that will not run."""
    for unit in cut.units:
        for path in listeners(unit.module, unit.key[0]):
            raise Refused(f"there is a hook on `{path}`, which would not be called")


def listeners(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the paths of modules to which somebody else than a library listens."""
    for path, module in model.named_modules(prefix=prefix):
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # noqa: SLF001
        if not all(map(_is_of_library, hooks)):
            yield path


def _is_of_library(hook: Callable[..., Any]) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith(_LIBRARIES)


# --- what activations depend on -------------------------------------------------------------------


def fingerprint(run: Run, cut: Cut, probe: Probe, weights: str, precision: str) -> str:
    """Hash everything that the kept activations depend on: equal only if they are.

    Frozen weights, buffers, what is kept and how, where and in which numbers it is computed, the options
    of backbone, task and data, and what the preprocessing makes of a few examples. And the phase, with
    which all begins anew.

    Args:
        run: The run.
        cut: Of its model.
        probe: A few examples.
        weights: Hash of the frozen weights.
        precision: Name of the precision in which the model runs.
    """
    components = [a.planned for a in run.active if a.planned.kind in ("backbone", "task", "data")]
    return digest(
        {
            "weights": weights,
            "kept": [[*leaf.name[0], leaf.name[1], leaf.first] for leaf in cut.kept],
            "dtype": run.plan.train.replay_dtype,
            "precision": precision,
            "device": run.device.type,
            "phase": run.clock.phase,
            "components": [
                f"{p.key} {p.entry.name} {p.entry.version} {p.options}" for p in components
            ],
            "data": repr(run.plan.data),
            "inputs": dict(probe.inputs),
        }
    )


def shared_key(run: Run, cut: Cut, weights: str, precision: str) -> str:
    """Hash the same for the runs of a study, which differ in their training examples and seeds alone."""
    components = [a.planned for a in run.active if a.planned.kind in ("backbone", "task", "data")]
    return digest(
        {
            "weights": weights,
            "kept": [[*leaf.name[0], leaf.name[1], leaf.first] for leaf in cut.kept],
            "dtype": run.plan.train.replay_dtype,
            "precision": precision,
            "device": run.device.type,
            "components": [f"{p.key} {p.entry.name} {p.options}" for p in components],
            "data": [repr(run.plan.data.columns), run.plan.data.split_seed, run.plan.data.test],
            "validation": run.plan.data.validation,
        }
    )


class Watched:
    """Notices when frozen weights change though they must not.

    Args:
        run: The run.
        cut: Of its model.
    """

    def __init__(self, run: Run, cut: Cut) -> None:
        self._clock = run.clock
        self._tensors = frozen_tensors(run.model, cut.units)
        self._versions = self._read_versions()
        self._epoch = run.clock.epoch
        self._changed = False
        # A write by way of `.data` is not counted, and only these may make one.
        self._distrusts = any(getattr(run.hooks, name) is not None for name in _WRITERS)
        self.digest = digest(self._tensors)

    @property
    def unchanged(self) -> bool:
        """Whether the weights are what they were.

        Every time by torch's own count of writes. By their bits after a write, as one of the same
        values, in loading a checkpoint, changes nothing; and once an epoch, if components might write.
        """
        versions, epoch = self._read_versions(), self._clock.epoch
        if versions != self._versions or (self._distrusts and epoch != self._epoch):
            self._changed = digest(self._tensors) != self.digest
            self._versions, self._epoch = versions, epoch
        return not self._changed

    def _read_versions(self) -> list[int]:
        return [tensor._version for tensor in self._tensors.values()]  # noqa: SLF001


def frozen_outside(model: nn.Module, cut: Cut) -> int:
    """Return how many frozen parameters are in no unit."""
    inside = {id(p) for unit in cut.units for p in unit.module.parameters()}
    return sum(not p.requires_grad and id(p) not in inside for p in model.parameters())


# --- keys of decisions ----------------------------------------------------------------------------


def trainable_key(run: Run) -> str:
    """Return what a decision is for: the phase, and what trains in it."""
    names = [name for name, p in run.model.named_parameters() if p.requires_grad]
    return digest({"phase": run.clock.phase, "names": names})[:16]


def structure_key(run: Run, precision: str) -> str:
    """Return the same for runs whose models can be cut alike: of the same modules in the same modes."""
    modules = [
        [path, type(module).__module__, type(module).__qualname__, module.training]
        for path, module in run.model.named_modules()
    ]
    return digest({"modules": modules, "trains": trainable_key(run), "precision": precision})


def run_key(run: Run) -> str:
    """Return the same for all runs of a recipe on machines like this one."""
    return digest(
        {
            "recipe": run.plan.resolved().to_toml(),
            "trains": trainable_key(run),
            "device": str(run.device),
            "threads": torch.get_num_threads(),
            "processes": run.accelerator.num_processes,
            "examples": {name: len(split) for name, split in run.splits.items()},
            "libraries": library_versions(),
            "sharded": launch.wants_sharding(),
        }
    )[:32]
