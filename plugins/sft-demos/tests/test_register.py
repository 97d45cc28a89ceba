"""What the plugin offers, and that offering it costs nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import sft_demos

OFFERED = {
    ("weights", "demo:minilm"),
    ("data", "movie-reviews"),
    ("data", "tweets"),
    ("data", "amazon-reviews"),
    ("data", "nyt-editorials"),
    ("weights", "demo:efficientnet-lite0"),
    ("data", "mnist-5k"),
    ("data", "digits"),
    ("data", "photo-stamps"),
    ("data", "iris"),
}


class Catalog:
    """Records what is added, as the engine's catalog does."""

    def __init__(self) -> None:
        self.added: dict[tuple[str, str], tuple[str, str]] = {}

    def add(self, kind: str, name: str, target: str, summary: str) -> None:
        assert (kind, name) not in self.added
        self.added[kind, name] = (target, summary)


def test_every_target_exists_and_has_a_summary() -> None:
    catalog = Catalog()
    sft_demos.sft_register(catalog)
    assert set(catalog.added) == OFFERED
    for target, summary in catalog.added.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert summary.endswith(".")


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, sft_demos, sft_demos.weights, sft_demos.reviews, sft_demos.efficientnet;"
        "import sft_demos.mnist, sft_demos.bundled, sft_demos.stamps;"
        "heavy = {'torch', 'datasets', 'transformers', 'pandas', 'numpy', 'sklearn', 'timm', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
