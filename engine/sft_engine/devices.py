"""Devices, precision and wrapping: everything that depends on the machine, apart from the loop."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine import launch, sharding
from sft_engine.errors import OutOfMemoryError, RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sft_engine.flow import Run
    from sft_engine.settings import TrainSettings

SMALLEST_SCALE = 1e-4
"""Loss scale of fp16 below which it is not the scale that makes gradients overflow (as fairseq)."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_HALF = frozenset(_DTYPES.values())


@dataclass
class Precision:
    """The number format of a run.

    Master weights are float32; autocast is our own, because Accelerate's patches `model.forward`.

    Args:
        name: `fp32`, `bf16` or `fp16`.
        device_type: Of the device that autocast works on.
        scaler: Gradient scaler of fp16; None otherwise.
        sharded: Parameters are sharded over ranks (FSDP).
        accelerator: Runs `backward`, which DeepSpeed replaces.
    """

    name: str
    device_type: str
    scaler: torch.amp.GradScaler | None
    sharded: bool
    accelerator: Accelerator

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, _DTYPES[self.name])

    def backward(self, parts: list[tuple[torch.Tensor, float]]) -> None:
        """Run the backward pass of a sum of scalars times factors, scaled where fp16 needs it.

        The factors are where the pass begins: as exact as multiplying first, and less work.
        """
        learned = [(value, factor) for value, factor in parts if value.requires_grad]
        values = [value.float() if value.dtype in _HALF else value for value, _ in learned]
        seeds = [v.new_full((), factor) for v, (_, factor) in zip(values, learned, strict=True)]
        if self.scaler is not None:
            seeds = [self.scaler.scale(seed) for seed in seeds]
        if len(values) == 1:
            # Quicker than lists of one.
            values[0].backward(seeds[0])  # type: ignore[no-untyped-call]
        else:
            torch.autograd.backward(values, seeds)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step, unless fp16 gradients overflowed."""
        if self.scaler is None:
            plain_step(optimizer)
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def skip(self) -> None:
        """Leave a step out: the next window is scaled and unscaled anew."""
        if self.scaler is not None:
            self.scaler.update()

    def may_recover(self) -> bool:
        """Say whether a gradient that is not finite may be an overflow that a lower scale heals."""
        return self.scaler is not None and self.scaler.get_scale() >= SMALLEST_SCALE

    def remark(self) -> str:
        """Say what fp16 has to do with a gradient that is not finite."""
        return (
            "" if self.scaler is None else f" even at a loss scale of {self.scaler.get_scale():g}"
        )

    def unscale_again(self, parameters: list[torch.nn.Parameter]) -> None:
        """Unscale gradients that were computed after the window's own `unscale_`."""
        assert self.scaler is not None
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, 1.0 / self.scaler.get_scale())


def plain_step(optimizer: torch.optim.Optimizer) -> None:
    """Take an optimizer's step without torch's wrapper for profiles and hooks, unless it has hooks.

    The wrapper takes longer than the fused step of a small model.
    """
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks  # noqa: SLF001
    inner = getattr(type(optimizer).step, "__wrapped__", None)
    if hooks or inner is None or "step" in vars(optimizer):
        optimizer.step()
    else:
        inner(optimizer)


def choose_precision(
    settings: TrainSettings, accelerator: Accelerator, model: torch.nn.Module | None = None
) -> Precision:
    """Resolve `train.precision`; `auto` takes bf16 where the processor computes in it.

    A CPU does so slowly for depthwise convolutions: such a model (MobileNet, EfficientNet, ConvNeXt) is
    1.04 to 1.85 times faster in fp32, channels innermost.

    Raises:
        RecipeError: fp16 with sharded parameters, whose overflow one rank alone would see.
    """
    device, name = accelerator.device, launch.precision(settings)
    sharded = sharding.is_sharded(accelerator)
    if name == "auto":
        slow = device.type == "cpu" and model is not None and _has_depthwise(model)
        name = "bf16" if computes_bf16(device) and not slow else "fp32"
    if name == "fp16" and sharded:
        raise RecipeError("`train.precision`: found fp16, with FSDP allowed: bf16, fp32")
    scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
    return Precision(name, device.type, scaler, sharded, accelerator)


def computes_bf16(device: torch.device) -> bool:
    """Say whether the processor has bf16 arithmetic, not only an emulation of it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # torch 2.9 has no such function
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16"))
    return False


def _has_depthwise(model: torch.nn.Module) -> bool:
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    convolutions = (module for module in model.modules() if isinstance(module, kinds))
    return any(each.groups == each.in_channels > 1 for each in convolutions)


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Start Accelerate on the device of the recipe, in the process group of the launcher.

    Raises:
        RecipeError: `train.device` is not there, or the launcher asks for what the loop cannot do.
    """
    launch.refuse_unsupported()
    from accelerate import Accelerator

    wanted = settings.device
    cpu = wanted == "cpu" or (wanted == "auto" and not torch.accelerator.is_available())
    # Autocast and compilation are our own; the launcher's would patch `model.forward` on top.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", dynamo_backend="no")
    if wanted not in ("auto", accelerator.device.type, str(accelerator.device)):
        raise RecipeError(
            f"`train.device`: found {wanted!r}, this machine offers {accelerator.device.type!r}: "
            "write `auto` or leave the key out"
        )
    if launch.wants_sharding() and accelerator.num_processes > 1:
        sharding.switch_on(accelerator)
    return accelerator


def set_threads(settings: TrainSettings) -> None:
    """Set torch's CPU threads and determinism as the recipe says."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)


def seed_noise(device: torch.device, key: int) -> None:
    """Seed dropout and every other torch draw of a micro-batch.

    A pure function of position, so that a resumed run and one that evaluates more often draw the same.
    `torch.manual_seed` is left alone: it formats a traceback for each device that is not started.
    """
    key &= (1 << 63) - 1
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)
    torch.default_generator.manual_seed(key)


@contextlib.contextmanager
def own_state(key: int) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch; at the end give the caller's back.

    So are the number of torch's threads and its determinism, which a recipe may set.
    """
    python, numbers, own = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 (components may draw from it)
    torch.default_generator.manual_seed(key & (2**63 - 1))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_rng_state(own)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def wrap(run: Run, *, unused: bool = False) -> None:
    """Wrap the run's model for its process group, dropping an earlier wrapper.

    Args:
        run: The run.
        unused: Some trainable parameters may get no gradient; a component that knows that its own
            will not declares it, and need not be asked.
    """
    run.trainable = [p.requires_grad for p in run.model.parameters()]
    accelerator = run.accelerator
    if sharding.is_sharded(accelerator):
        # FSDP reads `requires_grad` anew in every step: a sharded model stays as it is.
        if not sharding.is_wrapped(run):
            run.wrapped = _compiled(run, sharding.shard(run))
    elif accelerator.num_processes == 1:
        run.wrapped = _compiled(run, run.model)
    else:
        run.wrapped = _data_parallel(run, unused=unused)


def _data_parallel(run: Run, *, unused: bool) -> torch.nn.Module:
    from accelerate import DistributedDataParallelKwargs

    accelerator = run.accelerator
    for stale in (run.wrapped, run.model):
        # Accelerate keeps what it prepared; a stale wrapper would be saved, synchronized and kept.
        kept = [m for m in accelerator._models if m is not stale]  # noqa: SLF001
        accelerator._models = kept  # noqa: SLF001
    unused = unused or any(
        getattr(getattr(a.component, "capabilities", None), "unused_parameters", False)
        for a in run.active
    )
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
    wrapped: torch.nn.Module = accelerator.prepare_model(_compiled(run, run.model))
    return wrapped


def _compiled(run: Run, model: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(model) if run.plan.train.compile else model  # type: ignore[return-value]


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Recognise a lack of memory on any device."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "can't allocate memory" in text or "out of memory" in text
    )


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn a lack of memory that no smaller batch has cured into a sentence.

    Args:
        advice: What to do about it, as the end of the sentence.

    Raises:
        OutOfMemoryError: the part that ran needs more memory than there is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).partition("\n")[0] or type(error).__name__
        raise OutOfMemoryError(f"the memory does not suffice ({message}): {advice}") from error


def release_memory(device: torch.device) -> None:
    """Give what a failed attempt held back to the device, which caches it; host memory is free already."""
    if device.type != "cpu":
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
