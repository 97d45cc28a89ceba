"""Views of a few examples, and what components are told of each view."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sft_engine import View, hookimpl
from sft_engine.assemble import assemble
from sft_engine.evaluation import evaluate
from sft_engine.feed import transformed
from sft_engine.testing.runs import TINY, plan_recipe

IDS = [6, 1, 4]


def letter(row, draws):
    return {**row, "text": row["text"] + "abcdefgh"[int(draws.integers(8))]}


class Few:
    """Offers views of three examples; keeps what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, torch.Tensor]] = {}
        self.seen: dict[str, list[int]] = {}

    @hookimpl
    def sft_eval_views(self, run, split):
        changed = {"transform": letter, "ids": IDS}
        return [
            View("few", ids=IDS),
            View("one", seed=1, **changed),
            View("same", seed=1, **changed),
            View("other", seed=2, **changed),
        ]

    @hookimpl
    def sft_eval_batch(self, view, batch):
        self.seen.setdefault(view.name, []).extend(batch.ids)

    @hookimpl
    def sft_metrics(self, view, predictions):
        self.told[view.name] = dict(predictions)


@pytest.fixture(scope="module")
def evaluated():
    here = Path(__file__)
    sys.path.insert(0, str(here.parent))
    text = f'{TINY}[[extension]]\nuse = "test/few"\n'
    plan = plan_recipe(text, (), {("extension", "test/few"): f"{here.stem}:Few"})
    built = assemble(plan, Path("unused"))
    results = {r.view.name: r for r in evaluate(built.run, "test", built.precision, batch_size=2)}
    few = next(a.component for a in built.run.active if type(a.component).__name__ == "Few")
    return built.run, results, few


def test_a_view_of_a_few_examples_is_that_part_of_the_split(evaluated) -> None:
    run, results, few = evaluated
    ids = sorted(IDS)
    assert sorted(few.seen["few"]) == ids
    whole, part = results[""].predictions, results["few"].predictions
    for name, tensor in part.items():
        torch.testing.assert_close(tensor, whole[name][ids], rtol=0, atol=1e-6)
    right = (part["logits"].argmax(1) == part["label"]).double().mean()
    assert results["few"].values["accuracy"] == pytest.approx(float(right))
    assert View().examples(run.splits["test"]).tolist() == list(range(8))
    assert View(ids=IDS).examples(run.splits["test"]).tolist() == ids


def test_components_are_told_the_predictions_in_that_order(evaluated) -> None:
    _, results, few = evaluated
    assert list(few.told) == list(results)
    for name, result in results.items():
        assert few.told[name].keys() == result.predictions.keys()
        assert all(torch.equal(few.told[name][k], result.predictions[k]) for k in few.told[name])


def test_a_seed_decides_the_draws_whatever_the_name(evaluated) -> None:
    run, results, _ = evaluated
    one, same, other = (results[name].predictions["logits"] for name in ("one", "same", "other"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    rows = transformed(run.splits["test"], sorted(IDS), (1,), [letter])
    inputs = run.backbone.collate(run.backbone.encode_rows(rows, run.task))
    torch.testing.assert_close(run.model(inputs["ids"]), one, rtol=0, atol=1e-6)
