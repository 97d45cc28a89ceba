"""Each kind of picture in a run: what happens with `stop` and with `skip`. See `pictures.py`."""

from __future__ import annotations

import contextlib

import pictures
import pytest

from sft_engine import evaluate
from sft_engine.testing import install_fake


@pytest.fixture(scope="module", autouse=True)
def components(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install_fake(site, "sft-pictures", {}, entry_points={"pictures": "tiny_components"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("SFT_ENGINE_PLUGINS", "pictures")
        yield


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_whole_pictures_are_used(on_error, tmp_path):
    with contextlib.chdir(tmp_path):
        assert pictures.outcome(on_error, *pictures.WHOLE) == (0, "")
        found = evaluate("out", split="train")
    assert sum(map(sum, found["confusion_matrix"])) == len(pictures.WHOLE) + 2 * pictures.GOOD


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("picture", pictures.BROKEN, ids=lambda each: each.name)
def test_a_broken_picture_is_named(picture, on_error, tmp_path):
    with contextlib.chdir(tmp_path):
        code, said = pictures.outcome(on_error, picture)
    assert "Traceback" not in said
    assert f"'{tmp_path}/photos/a/{picture.file}' (row " in said
    assert picture.problem in said
    assert said.count("\n") == 0
    trained = (tmp_path / "out" / "model" / "model.safetensors").exists()
    assert (code, trained) == ((3, False) if on_error == "stop" else (0, True))
    assert (tmp_path / "out").exists() == trained
