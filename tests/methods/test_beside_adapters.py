"""Every component of sft-regularizers beside adapters of sft-freezing: exact, or refused with the reason."""

from __future__ import annotations

import pytest
from cases import DOUBLE, LAYERS, REGULARIZERS, compatible, difference, recipe, trained, weights

from sft_engine import Interrupted, RecipeError

ADAPTERS = {
    "lora": '[freezing]\nuse = "lora"\nrank = 2\ndropout = 0.1\n',
    "adalora": '[freezing]\nuse = "adalora"\nrank = 4\ntarget = 2\nevery = 1\n',
}
REFUSED = ("re-init", "noisy-tune", "fgm")
ALLOWED = [name for name in REGULARIZERS if name not in REFUSED]


def assert_resumes(folder, text):
    one = trained(folder / "one", text, DOUBLE)
    assert all(weight.isfinite().all() for weight in weights(one).values())
    with pytest.raises(Interrupted):
        trained(folder / "other", text, DOUBLE, stop_after=2)
    resumed = trained(folder / "other", text, DOUBLE, resume=True)
    assert resumed.fingerprint == one.fingerprint
    return one


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_all_together_resume_bit_equal(tmp_path, adapter):
    names = compatible("text", without=[*LAYERS, *REFUSED])
    assert_resumes(tmp_path, recipe(*names, final=False) + ADAPTERS[adapter])


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_weights_themselves_is_refused(tmp_path, name):
    with pytest.raises(RecipeError, match=f"`regularizer\\[0\\]`: {name} beside lora: {name} "):
        trained(tmp_path / "run", recipe(name) + ADAPTERS["lora"], DOUBLE)
    assert trained(tmp_path / "run", recipe(name, zero=True) + ADAPTERS["lora"], DOUBLE)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ALLOWED)
def test_each_resumes_accumulates_and_is_absent_at_zero(tmp_path, name, adapter):
    table = ADAPTERS[adapter].replace("dropout = 0.1\n", "")
    one = assert_resumes(tmp_path, recipe(name) + table)
    if not REGULARIZERS[name].whole:
        parts = trained(
            tmp_path / "parts", recipe(name) + table, [*DOUBLE, "train.micro_batch_size=4"]
        )
        assert difference(parts, one) < 1e-11
    nothing = trained(tmp_path / "nothing", recipe(name, zero=True) + table, DOUBLE)
    assert difference(nothing, trained(tmp_path / "absent", recipe() + table, DOUBLE)) == 0
