"""AdaLoRA: the budget of ranks by its formula, what is dropped stays dropped, and the loss term."""

from __future__ import annotations

import pytest
import torch
from freezing_parts import COMPONENTS, Note

from sft_engine import RecipeError
from sft_engine.testing.runs import TINY, run_recipe
from sft_freezing.adalora import AdaLoRA, far_from_orthogonal

TEXT = TINY + '[freezing]\nuse = "adalora"\nrank = 4\ntarget = 2\nevery = 2\n'
SHORT = [
    "train.epochs=4",  # of three steps
    "optimizer.use=sgd",
    "optimizer.lr=0.5",
    "checkpoint.best=last",
    "evaluation.every_epochs=0",
    "evaluation.test=false",
]


def trained(folder, *overrides):
    text = TEXT + '[[extension]]\nuse = "test/note"\n'
    return run_recipe(folder, text, [*SHORT, *overrides], COMPONENTS)


def kept(state):
    values = [value for name, value in state.items() if "lora_E" in name]
    return sum(int(value.ne(0).sum()) for value in values)


def test_singular_values_are_dropped_by_a_cubic_budget(tmp_path):
    """Of two layers of rank 4: from step 1 to step 6 of 12, at every second one; settled at the end."""
    trained(tmp_path / "run")
    seen = [kept(step["weights"]) for step in Note.steps]  # after as many steps
    budget = {step: int(4 * (1 - (step - 1) / 5) ** 3 + 4) for step in (2, 4, 6)}
    assert budget == {2: 6, 4: 4, 6: 4}
    assert [seen[step] for step in (0, 1, 2, 4)] == [0, 8, 6, 4]
    assert seen[6:] == [4] * 6


def test_orthogonal_vectors_cost_nothing():
    vectors = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0][:3]
    assert far_from_orthogonal([("x.lora_A.default", vectors)]) < 1e-12
    assert far_from_orthogonal([("x.lora_B.default", vectors.T)]) < 1e-12
    twice = far_from_orthogonal([("x.lora_A.default", 2 * vectors), ("y.lora_A.default", vectors)])
    assert twice == pytest.approx(3 * 3**0.5 / 2)  # |4 I - I| of three rows, and nothing


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": 0.5, "end": 0.5}, "`freezing.start`: found 0.5, allowed is less than `end`"),
        ({"rank": 4, "target": 8}, "`freezing.target`: found 8, allowed is `rank`, which is 4"),
    ],
)
def test_what_runs_backwards_is_refused(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        AdaLoRA(**options).check()


def test_a_run_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"`freezing.end`: of 2 steps, none is between `start`"):
        trained(tmp_path / "run", "train.steps=2", "freezing.end=0.2")
    assert not (tmp_path / "run").exists()
