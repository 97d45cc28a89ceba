"""Image backbones and transforms from torchvision, and backbones from torch.hub."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the components; nothing heavy is imported before a run needs it."""
    catalog.add(
        "backbone",
        "torchvision",
        "sft_torchvision.backbone:Torchvision",
        "Any classifier of torchvision, with the preprocessing of its weights.",
    )
    catalog.add(
        "backbone",
        "torch-hub",
        "sft_torchvision.hub:TorchHub",
        "An image model from the hubconf.py of a folder or a repository, by torch.hub.",
    )
    catalog.add(
        "augmentation",
        "image-transforms",
        "sft_torchvision.transforms:ImageTransforms",
        "Random crop, flip and any other transform of torchvision on training images.",
    )
