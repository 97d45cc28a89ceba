"""What is wrong with a recipe or with data is one sentence, and leaves nothing behind."""

from __future__ import annotations

import broken_inputs
import pytest

from sft_engine.testing import install_fake


@pytest.fixture(scope="module", autouse=True)
def victims(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install_fake(site, "sft-victims", {}, entry_points={"victims": "victims"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("SFT_ENGINE_PLUGINS", "victims")
        yield


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", broken_inputs.CASES, ids=lambda case: case.name)
def test_one_sentence_and_nothing_left(case, tmp_path):
    with broken_inputs.prepared(case, tmp_path):
        before = contents(tmp_path)
        code, said = broken_inputs.told(case)
    assert code == case.code, said
    assert said.startswith("error: ")
    assert said.count("\n") == 0
    assert "Traceback" not in said
    for word in case.words:
        assert word in said
    if not case.leaves:
        assert contents(tmp_path) == before
        assert not [p for p in tmp_path.iterdir() if p.is_dir() and not any(p.iterdir())]


def test_the_recipe_is_good_without_the_mistake(tmp_path):
    good = broken_inputs.Case("nothing", 0, ())
    with broken_inputs.prepared(good, tmp_path):
        assert broken_inputs.told(good) == (0, "")
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
