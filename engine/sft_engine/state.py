"""Nested state to files and back, without pickle: tensors to safetensors, everything else to JSON."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_SCALARS = (str, int, float, bool, type(None))


def pack(value: Any, name: str = "", tensors: dict[str, Tensor] | None = None) -> Any:
    """Turn nested state into JSON values, moving each tensor to `tensors` under its path.

    Raises:
        CheckpointError: something in it is neither tensor, array, number, text nor a container of them.
    """
    tensors = {} if tensors is None else tensors
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"$array": name, "dtype": str(value.dtype)}
    if isinstance(value, torch.dtype):  # some optimizers keep one in their groups
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (*_SCALARS, np.generic)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, dict):
        return _pack_dict(value, name, tensors)
    if isinstance(value, (list, tuple, set)):
        items = sorted(value) if isinstance(value, set) else value
        packed = [pack(item, f"{name}/{i}", tensors) for i, item in enumerate(items)]
        return packed if isinstance(value, list) else {f"${type(value).__name__}": packed}
    raise CheckpointError(
        f"the state at {name!r} is a {type(value).__name__}, which cannot be saved without pickle: "
        "return tensors, arrays, numbers, texts, lists and dicts from `state_dict`"
    )


def _pack_dict(value: dict[Any, Any], name: str, tensors: dict[str, Tensor]) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
    pairs = [[pack(k, name, tensors), pack(v, f"{name}/{k}", tensors)] for k, v in value.items()]
    return {"$pairs": pairs}


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Turn what `pack` returned back into nested state."""
    if not isinstance(value, dict):
        return [unpack(item, tensors) for item in value] if isinstance(value, list) else value
    mark = next((key for key in value if key.startswith("$")), "")
    if mark in ("$tensor", "$array"):
        tensor = tensors[value[mark]]
        array = mark == "$array"
        return tensor.numpy().astype(value["dtype"], copy=False) if array else tensor
    if mark in ("$tuple", "$set"):
        items = (unpack(item, tensors) for item in value[mark])
        return tuple(items) if mark == "$tuple" else set(items)
    if mark == "$dtype":
        return getattr(torch, value[mark])
    if mark == "$pairs":
        return {unpack(k, tensors): unpack(v, tensors) for k, v in value[mark]}
    return {key: unpack(item, tensors) for key, item in value.items()}


def clone(value: Any) -> Any:
    """Copy nested state, tensors included, so that training cannot change it."""
    tensors: dict[str, Tensor] = {}
    packed = pack(value, "", tensors)
    return unpack(packed, {name: tensor.detach().clone() for name, tensor in tensors.items()})


def separate_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split tensors into unique ones and aliases (tied weights), which safetensors refuses.

    Returns:
        Contiguous unique tensors, and for each alias the name that holds its data.
    """
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        key = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
            str(tensor.device),
        )
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            unique[name] = _own_storage(tensor.detach())
    return unique, aliases


def _own_storage(tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        return tensor.contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def digest(value: Any) -> str:
    """Return the SHA-256 of nested state: equal bits, equal digest."""
    tensors: dict[str, Tensor] = {}
    packed = pack(value, "", tensors)
    result = hashlib.sha256(json.dumps(packed, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()
