"""What is offered, without torch; what the guard heals; what a model without embeddings is told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from one_step import SEEN, use
from torch import nn

from sft_engine import DivergedError, RecipeError
from sft_engine.testing.runs import TINY, run_recipe
from sft_regularizers import COMPONENTS
from sft_regularizers.embeddings import input_embeddings


def test_checking_a_recipe_imports_no_torch():
    code = (
        "import sys\n"
        "from sft_engine.catalog import plan\n"
        "from sft_engine.recipe import parse_recipe\n"
        "from sft_engine.testing.runs import TINY, tiny_plugins\n"
        "from sft_regularizers import COMPONENTS\n"
        "names = [n for n in COMPONENTS if n not in ('asam', 'fgm', 'swa', 'lawa', 'wise-ft')]\n"
        "more = ''.join(f'[[regularizer]]\\nuse = \"{n}\"\\n' for n in names)\n"
        "text = TINY + more + '[checkpoint]\\nbest = \"last\"\\n'\n"
        "known = {e.name for e in tiny_plugins().catalog.entries()}\n"
        "assert set(COMPONENTS) <= known\n"
        "recipe = parse_recipe(text, 'recipe.toml', ['optimizer.weight_decay=0'])\n"
        "plan(recipe, tiny_plugins())\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
    assert len(COMPONENTS) == 34


def guarded(folder, steps, factor, **options):
    text = (
        TINY
        + f'[[extension]]\nuse = "test/poison"\nsteps = {steps}\nfactor = {factor}\n'
        + use("spike-guard", least=2, **options)
    )
    overrides = ["train.steps=12", "optimizer.use=sgd", "checkpoint.best=last"]
    components = {("extension", "test/poison"): "one_step:Poison"}
    run_recipe(folder, text, overrides, components)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "verdict"]


@pytest.mark.parametrize("factor", ["1e6", "nan"])
def test_a_spike_is_left_out_and_the_run_goes_on(tmp_path, factor):
    verdicts = guarded(tmp_path / "run", [4], factor)
    assert [(v["step"], v["action"]) for v in verdicts] == [(4, "skip")]
    assert len(verdicts[0]["examples"]) > 0
    assert "the gradient norm" in verdicts[0]["reason"]


def test_several_in_a_row_put_the_weights_back_within_the_budget(tmp_path):
    steps = [4, 5, 6, 8, 9, 10]
    verdicts = guarded(tmp_path / "run", steps, "1e6", patience=3, budget=2)
    assert [v["action"] for v in verdicts] == ["skip", "skip", "roll back"] * 2
    assert "the spike number 3 in a row" in verdicts[2]["reason"]
    with pytest.raises(DivergedError, match=r"weights were put back 1 times \(`budget`"):
        guarded(tmp_path / "other", steps, "1e6", patience=3, budget=1)


def test_a_model_without_embeddings_is_a_sentence():
    with pytest.raises(
        RecipeError, match="r3f changes the input embeddings, and Linear has neither"
    ):
        input_embeddings(nn.Linear(2, 2), "r3f")


def test_embeddings_are_asked_for_before_they_are_looked_for():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.words = nn.Embedding(3, 2), nn.Embedding(9, 2)

        def get_input_embeddings(self):
            return self.words

    model = Model()
    assert input_embeddings(model, "r3f") is model.words
    assert input_embeddings(nn.Sequential(nn.Linear(1, 1), model.words), "r3f") is model.words


def test_a_copy_of_a_model_with_mixout_answers_with_its_own_weights(seen):
    import copy

    run = seen(use("mixout", p=0.9))
    model, ids = run.run.model.eval(), run.batches[0].inputs["ids"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert (twin(ids) == 0).all()
        assert (model(ids) != 0).any()
    assert len(SEEN) == 1


def test_a_finished_run_is_evaluated_as_it_was_left(seen):
    """What changes weights before training, or in it, must not do so when the result is opened again."""
    from sft_engine.assemble import reopen
    from sft_engine.evaluation import evaluate

    names = ("noisy-tune", "re-init", "mixout", "r4f", "smart", "distillation", "ema")
    run = seen("".join(map(use, names)), ["train.steps=3"])
    opened = reopen(run.run.plan, run.outcome.folder, run.run.task.names)
    results = evaluate(opened.run, "validation", opened.precision, batch_size=8)
    assert len(results) == 1  # there is no average any more: it is the weights
    assert results[0].values == run.outcome.metrics
