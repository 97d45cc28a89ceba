"""The plugin that offers the tiny image components to the command line."""

from __future__ import annotations

from sft_engine import hookimpl


@hookimpl
def sft_register(catalog):
    catalog.add("backbone", "tiny/image", "sft_engine.testing.tiny_images:TinyImage", "Tiny.")
    catalog.add("data", "tiny/pictures", "sft_engine.testing.tiny_images:TinyPictures", "Noise.")
