"""What the launcher asked for, read from the environment that it gave to this process.

`accelerate launch` hands its configuration file over in variables. What the engine cannot do is
refused here; what it does otherwise is said. Nothing is ignored in silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sft_engine.errors import RecipeError

if TYPE_CHECKING:
    from sft_engine.settings import TrainSettings

_WORLDS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_LAUNCHER = "the launcher's configuration"


def processes(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes the launcher says there are, by the variables Accelerate reads."""
    numbers = [int(environ[name]) for name in _WORLDS if environ.get(name, "").isdigit()]
    return max(numbers, default=1)


def require_one_process(verb: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a verb that several processes could only do several times.

    Raises:
        RecipeError: the launcher started more than one.
    """
    if (found := processes(environ)) > 1:
        raise RecipeError(
            f"`sft-engine {verb}` works in one process, the launcher started {found}: call it without one"
        )


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return the rank of this process as its launcher says, by the variables Accelerate reads."""
    given = (environ.get(name, "") for name in _RANKS)
    return next((int(text) for text in given if text.isdigit()), 0)


def wants_sharding(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether the launcher's configuration asks for FSDP."""
    return _is_on(environ, "ACCELERATE_USE_FSDP")


def refuse_unsupported(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse what the loop cannot do.

    Raises:
        RecipeError: the launcher's configuration asks for it.
    """
    for variable, (what, instead) in _UNSUPPORTED.items():
        if _is_on(environ, variable):
            raise RecipeError(f"{_LAUNCHER} asks for {what}, which is not supported: {instead}")
    if not wants_sharding(environ):
        return
    if environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError(
            f"{_LAUNCHER} asks for FSDP 1, which is not supported: set `fsdp_version: 2` in it, or "
            "convert it with `accelerate to-fsdp2 --config_file FILE`"
        )
    if _is_on(environ, "FSDP_ACTIVATION_CHECKPOINTING"):
        raise RecipeError(
            f"{_LAUNCHER} sets `fsdp_activation_checkpointing`: leave it out and write "
            "`train.gradient_checkpointing = true` in the recipe"
        )


_PLAIN = "use FSDP 2 or plain data parallelism (`accelerate launch --multi_gpu`)"
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed",
        f"it replaces backward pass and optimizer step, which the loop must control; {_PLAIN}",
    ),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", _PLAIN),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("tensor or context parallelism", _PLAIN),
    "ACCELERATE_USE_SAGEMAKER": ("SageMaker", _PLAIN),
}


def precision(settings: TrainSettings, environ: Mapping[str, str] = os.environ) -> str:
    """Return `train.precision`; where it is `auto`, the launcher's if it names one.

    Raises:
        RecipeError: the launcher's configuration asks for fp8.
    """
    asked = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked == "fp8":
        raise RecipeError(
            f"{_LAUNCHER} sets `mixed_precision: fp8`, allowed: no, bf16, fp16; the recipe's "
            "`train.precision` decides"
        )
    return asked if settings.precision == "auto" and asked != "no" else settings.precision


def notices(
    settings: TrainSettings, world: int, environ: Mapping[str, str] = os.environ
) -> list[str]:
    """Return sentences on what the launcher asked for and does not get.

    Args:
        settings: The recipe's.
        world: Processes of this run.
        environ: Variables of this process.
    """
    found = [_lonely(environ)] if world == 1 else []
    asked = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision(settings, environ)):
        found.append(
            f"{_LAUNCHER} sets mixed_precision {asked}, the recipe train.precision "
            f"{settings.precision}: the recipe decides"
        )
    if environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("", "1", "auto"):
        found.append(
            f"{_LAUNCHER} sets gradient_accumulation_steps: train.micro_batch_size decides instead"
        )
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        found.append(f"{_LAUNCHER} sets a dynamo backend: train.compile decides instead")
    if wants_sharding(environ) and world == 1:
        found.append(f"{_LAUNCHER} asks for FSDP, but there is one process: nothing to shard")
    return [sentence for sentence in found if sentence]


def _lonely(environ: Mapping[str, str]) -> str:
    """Notice that several processes were wanted where only this one knows of itself.

    `accelerate launch --cpu --num_processes 2` starts one process, and leaves nothing but the address
    at which the others should have met.
    """
    accelerate = "ACCELERATE_MIXED_PRECISION" in environ and "LOCAL_RANK" not in environ
    if accelerate and "MASTER_ADDR" in environ:
        return (
            "accelerate was asked for several processes and started one, as it does with --cpu and "
            "with MULTI_CPU in its configuration: use `accelerate launch --multi_gpu`, on a CPU too, "
            "or torchrun"
        )
    if environ.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1"):
        return (
            f"srun started {environ['SLURM_STEP_NUM_TASKS']} tasks, and this one runs alone: let each "
            "task start torchrun, or set RANK, WORLD_SIZE and MASTER_ADDR"
        )
    return ""


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "on")
