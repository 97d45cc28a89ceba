"""Tones and tiny models, made once; `tones` importable."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tones import RECIPE, STILL, checkpoint, write_tones

from sft_engine import run
from sft_engine.recipe import parse_recipe


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """No network, and a cache that starts empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("SFT_ENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("recordings") / "tones")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny models, by kind; `still` has no dropout."""
    folder = tmp_path_factory.mktemp("models")
    found = {
        kind: checkpoint(folder / kind, kind)
        for kind in ("wav2vec2", "hubert", "wavlm", "whisper", "ast")
    }
    return found | {"still": checkpoint(folder / "still", **STILL)}


@pytest.fixture(scope="session")
def recipe_of(recordings, models):
    """Return a function: the recipe on the tones, with a model by its kind."""

    def make(kind="wav2vec2", *overrides, tables=""):
        text = RECIPE.format(data=recordings, model=models[kind]) + tables
        return parse_recipe(text, "tones.toml", overrides)

    return make


@pytest.fixture(scope="session")
def trained(recipe_of, tmp_path_factory):
    """A finished run that tells the tones apart."""
    return run(recipe_of(), output=tmp_path_factory.mktemp("runs") / "run")
