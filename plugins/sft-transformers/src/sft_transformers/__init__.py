"""Text backbones from the transformers library."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the backbone; nothing heavy is imported before a run needs it."""
    catalog.add(
        "backbone",
        "transformers",
        "sft_transformers.backbone:Transformers",
        "Any text encoder or decoder that transformers can load.",
    )
