"""Text and audio backbones from the transformers library."""

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
    catalog.add(
        "backbone",
        "transformers-audio",
        "sft_transformers.audio:TransformersAudio",
        "Any audio encoder that transformers can load: wav2vec 2.0, HuBERT, AST, Whisper.",
    )


@hookimpl
def sft_check_recipe(recipe: Any) -> Any:
    """Find a task that the backbone cannot do, before anything is loaded."""
    from sft_transformers.tasks import problems

    return list(problems(recipe))
