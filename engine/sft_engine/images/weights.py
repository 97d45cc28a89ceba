"""Reads weights from a local file, without ever running what a pickle might hold."""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the error, which torch raises
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sft_engine.errors import RecipeError

_INSIDE = ("state_dict", "model_state_dict", "model", "state_dict_ema")
"""Keys under which training scripts put the weights in a checkpoint."""


def read_weights(file: str, key: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name.

    A prefix `module.`, which DataParallel leaves behind, is taken off.

    Args:
        file: *.safetensors, or a file of `torch.save` that holds tensors and nothing that would run.
        key: Where the recipe says it, for messages.

    Raises:
        RecipeError: there is no such file, it is damaged, or it holds something else.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise _complain(file, key, "is not a file: check the path")
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _tensors(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise _complain(file, key, f"cannot be read ({said}); fetch or write it again") from error
    except UnpicklingError as error:
        raise _complain(
            file,
            key,
            "is a pickle that holds more than tensors, and could run any code when it is read: load it "
            "where you trust it, and write its state dict with safetensors",
        ) from error
    return _state_dict(content, file, key)


def _tensors(path: Path) -> Any:
    """Read a file of torch.save; with `weights_only` nothing in it can run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd pickles, before they are refused
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251


def _state_dict(content: Any, file: str, key: str) -> dict[str, Tensor]:
    for inside in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(inside), dict):
            content = content[inside]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        found = type(content).__name__
        raise _complain(file, key, f"holds no state dict but {found}: give one of tensors by name")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _complain(file: str, key: str, what: str) -> RecipeError:
    return RecipeError(f'[backbone] {key} = "{file}" {what}.')
