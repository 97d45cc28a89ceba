"""Every component of sft-regularizers beside freezing schedules and learning rates of sft-freezing."""

from __future__ import annotations

import pytest
from cases import DOUBLE, LAYERS, REGULARIZERS, compatible, difference, recipe, trained, weights

from sft_engine import Interrupted

SCHEDULES = {
    "thawing": """
[freezing]
use = "gradual-unfreezing"
until = 0.75
rewarm = 2
[[extension]]
use = "auto-rgn"
""",
    "freezing": """
[freezing]
use = "progressive-freezing"
first = 0.25
anneal = true
[[extension]]
use = "layer-decay"
""",
}
"""In four steps: all but the embeddings have thawed by the third, or three of four groups are frozen."""

OTHERS = compatible("text", without=LAYERS)


def assert_resumes(folder, text):
    one = trained(folder / "one", text, DOUBLE)
    assert all(weight.isfinite().all() for weight in weights(one).values())
    with pytest.raises(Interrupted):
        trained(folder / "other", text, DOUBLE, stop_after=2)
    resumed = trained(folder / "other", text, DOUBLE, resume=True)
    assert resumed.fingerprint == one.fingerprint
    return one


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_together_resume_bit_equal(tmp_path, schedule):
    assert_resumes(tmp_path, recipe(*OTHERS, final=False) + SCHEDULES[schedule])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", REGULARIZERS)
def test_each_resumes_and_accumulates(tmp_path, name, schedule):
    text = recipe(name) + SCHEDULES[schedule]
    one = assert_resumes(tmp_path, text)
    if not REGULARIZERS[name].whole:
        parts = trained(tmp_path / "parts", text, [*DOUBLE, "train.micro_batch_size=4"])
        assert difference(parts, one) < 1e-11
