"""Devices, precision and wrapping: everything that depends on the machine, apart from the loop."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine.errors import RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sft_engine.flow import Run
    from sft_engine.settings import TrainSettings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass, scaled where fp16 needs it."""
        scaled: Any = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step, unless fp16 gradients overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def unscale_again(self, parameters: list[torch.nn.Parameter]) -> None:
        """Unscale gradients that were computed after the window's own `unscale_`."""
        assert self.scaler is not None
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, 1.0 / self.scaler.get_scale())


def choose_precision(settings: TrainSettings, accelerator: Accelerator) -> Precision:
    """Resolve `train.precision`; `auto` takes bf16 where the processor computes in it."""
    device, name = accelerator.device, settings.precision
    if name == "auto":
        name = "bf16" if computes_bf16(device) else "fp32"
    scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
    sharded = str(accelerator.distributed_type).endswith("FSDP")
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


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Start Accelerate on the device of the recipe, in the process group of the launcher.

    Raises:
        RecipeError: `train.device` is not there.
    """
    from accelerate import Accelerator

    wanted = settings.device
    cpu = wanted == "cpu" or (wanted == "auto" and not torch.accelerator.is_available())
    accelerator = Accelerator(cpu=cpu)
    if wanted not in ("auto", accelerator.device.type, str(accelerator.device)):
        raise RecipeError(
            f"`train.device`: found {wanted!r}, this machine offers {accelerator.device.type!r}: "
            "write `auto` or leave the key out"
        )
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
def own_generators(key: int) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch, and give the caller's back at the end."""
    python, numbers, own = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 (components may draw from it)
    torch.default_generator.manual_seed(key & (2**63 - 1))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_rng_state(own)


def wrap(run: Run) -> None:
    """Wrap the run's model for its process group, dropping an earlier wrapper.

    `find_unused_parameters` is on only where a component declares that it needs it.
    """
    from accelerate import DistributedDataParallelKwargs

    accelerator, compiled = run.accelerator, run.plan.train.compile
    for stale in (run.wrapped, run.model):
        # Accelerate keeps what it prepared; a stale wrapper would be saved, synchronized and kept.
        kept = [m for m in accelerator._models if m is not stale]  # noqa: SLF001
        accelerator._models = kept  # noqa: SLF001
    unused = any(
        getattr(getattr(a.component, "capabilities", None), "unused_parameters", False)
        for a in run.active
    )
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
    model: torch.nn.Module = run.model
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    if accelerator.num_processes == 1:
        run.wrapped = model
    else:
        run.wrapped = accelerator.prepare_model(model)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Recognise a lack of memory on any device."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "can't allocate memory" in text or "out of memory" in text
    )
