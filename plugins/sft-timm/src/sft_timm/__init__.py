"""Image backbones from the timm library."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the backbone; nothing heavy is imported before a run needs it."""
    catalog.add(
        "backbone",
        "timm",
        "sft_timm.backbone:Timm",
        "Any image model of the timm library, with the preprocessing of its weights.",
    )
