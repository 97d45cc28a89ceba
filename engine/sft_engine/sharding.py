"""Model and optimizer state by parameter name, whole on every layout: plain, DDP or FSDP.

A checkpoint looks the same whatever layout wrote it, and any layout can read it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft_engine.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from sft_engine.flow import Run


# --- sharding parameters over ranks (FSDP 2) ------------------------------------------------------


def is_sharded(accelerator: Accelerator) -> bool:
    """Say whether parameters are spread over ranks."""
    fsdp = str(accelerator.distributed_type).endswith("FSDP")
    return fsdp and accelerator.num_processes > 1


def switch_on(accelerator: Accelerator) -> None:
    """Let Accelerate shard on the CPU too, where it would leave the launcher's FSDP settings aside."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if accelerator.distributed_type != DistributedType.FSDP:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP


def is_wrapped(run: Run) -> bool:
    """Say whether the run's model is sharded already."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(run.model, FSDPModule)


def shard(run: Run) -> nn.Module:
    """Shard the model in place by the launcher's settings, and give the optimizer the new parameters.

    Raises:
        RecipeError: Accelerate cannot shard this model.
    """
    from accelerate.utils import fsdp2_prepare_model

    run.skeleton = _skeleton(run.model)
    trainable = {name: p.requires_grad for name, p in run.model.named_parameters()}
    try:
        model: nn.Module = fsdp2_prepare_model(run.accelerator, run.model)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        reason = str(error).replace("\n", " ")
        raise RecipeError(
            f"FSDP cannot shard {type(run.model).__name__}: {reason}; change the FSDP part of the "
            "launcher's configuration, or use `accelerate launch --multi_gpu`"
        ) from error
    parameters = dict(model.named_parameters())
    for name, flag in trainable.items():
        parameters[name].requires_grad_(flag)
    if run.optimizer is not None:
        _reparametrize(run, parameters)
    return model


def _reparametrize(run: Run, parameters: Mapping[str, Tensor]) -> None:
    """Give the optimizer other parameters of the same names."""
    can_fuse = isinstance(run.optimizer, torch.optim.Adam)  # and AdamW, which is one
    for torch_group, group in zip(run.optimizer.param_groups, run.parameter_groups, strict=True):
        torch_group["params"] = [parameters[name] for name in group.names]
        if torch_group.get("fused") and not can_fuse:
            torch_group["fused"] = False  # torch has no such kernel for sharded tensors


def _skeleton(model: nn.Module) -> nn.Module:
    """Copy a model without its weights, to put whole ones in when it is saved."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its elements, in host memory where it is sharded (collective)."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor that every rank has."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(model, DTensor) or isinstance(tensor, DTensor) or tensor.ndim == 0:
        return tensor
    # None: every rank cuts its own part, nothing is sent.
    return distribute_tensor(
        tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None
    )


_LAYOUT = ("params", "fused", "foreach")
"""What in an optimizer's group depends on where the parameters lie."""


# --- state by name --------------------------------------------------------------------------------


def state_of(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return model and optimizer state keyed by parameter name (collective where sharded)."""
    state = run.optimizer.state_dict()
    names = _names(run)
    model = {name: whole(value) for name, value in run.model.state_dict().items()}
    return model, {
        "state": {names[index]: _whole_values(value) for index, value in state["state"].items()},
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]],
    }


def load_state(run: Run, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
    """Load what `state_of` returned.

    Raises:
        CheckpointError: the parameters are not those of the recipe's model.
    """
    load_model(run, model)
    names = _names(run)
    index = {name: i for i, name in enumerate(names)}
    parameters = dict(run.model.named_parameters())
    current = run.optimizer.state_dict()["param_groups"]
    groups = [
        {**saved, **{key: own[key] for key in _LAYOUT if key in own}}
        for saved, own in zip(optimizer["groups"], current, strict=True)
    ]
    state = {
        index[name]: {k: _shard_value(v, parameters[name]) for k, v in value.items()}
        for name, value in optimizer["state"].items()
    }
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_model(run: Run, model: Mapping[str, Any]) -> None:
    """Load model weights alone.

    Raises:
        CheckpointError: the parameters are not those of the recipe's model.
    """
    own = run.model.state_dict()
    sharded = {
        name: _shard_like(value, own[name]) if name in own else value
        for name, value in model.items()
    }
    try:
        run.model.load_state_dict(sharded, strict=True)
    except RuntimeError as error:
        reason = str(error).replace("\n", " ")
        raise CheckpointError(
            f"the weights of the checkpoint do not fit the model: {reason}"
        ) from error


def whole_model(run: Run) -> nn.Module:
    """Return the model with whole parameters, for saving (collective where sharded)."""
    if run.skeleton is None:
        return run.model
    state = {name: whole(value) for name, value in run.model.state_dict().items()}
    run.skeleton.load_state_dict(state, assign=True)
    return run.skeleton


def whole_state(value: Any) -> tuple[Any, list[str]]:
    """Return nested state with whole tensors (collective), and the paths of those that were sharded."""
    from torch.distributed.tensor import DTensor

    paths: list[str] = []

    def visit(leaf: Any, path: str) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        paths.append(path)
        return whole(leaf)

    return _map_leaves(value, visit), paths


def shard_state(run: Run, value: Any, paths: list[str]) -> Any:
    """Shard again what `whole_state` made whole, if this run shards."""
    if not paths or not is_sharded(run.accelerator):
        return value
    model = next(run.model.parameters())
    return _map_leaves(
        value, lambda leaf, path: _shard_like(leaf, model) if path in paths else leaf
    )


def _map_leaves(value: Any, change: Callable[[Any, str], Any], path: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _map_leaves(item, change, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_map_leaves(item, change, f"{path}/{i}") for i, item in enumerate(value)]
        return type(value)(items)
    return change(value, path)


def share_buffers(run: Run) -> None:
    """Give every rank the buffers of rank 0: those of batch norm follow each rank's own examples."""
    if run.accelerator.num_processes == 1:
        return
    learned = {name for name, _ in run.model.named_parameters()}
    for name, value in run.model.state_dict().items():
        if name not in learned and isinstance(value, torch.Tensor):
            shared = value.contiguous()
            torch.distributed.broadcast(shared, src=0)
            value.copy_(shared)


def _names(run: Run) -> list[str]:
    return [name for group in run.parameter_groups for name in group.names]


def _whole_values(state: dict[str, Any]) -> dict[str, Any]:
    return {k: whole(v) if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def _shard_value(value: Any, parameter: Tensor) -> Any:
    """Shard what has the parameter's shape, such as its moments; the rest is the same on all ranks."""
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return _shard_like(_laid_out_like(value, parameter), parameter)
    return value


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor in the memory format of a parameter, such as channels last.

    Fused optimizers read both as one row of numbers, and would mix up the moments in silence.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor) or isinstance(parameter, DTensor):
        return value
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
