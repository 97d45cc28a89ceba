"""Samplers, focal loss and logit adjustment in whole runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from observers import COMPONENTS, RECIPES

from sft_augmentations.rare import focal_sum
from sft_engine import Batch, Interrupted, RecipeError
from sft_engine.assemble import assemble
from sft_engine.testing.runs import plan_recipe

STRENGTH = {
    "balanced-sampler": ("power = 0.5", "power = 0"),
    "focal": ("", "gamma = 0"),
    "logit-adjustment": ("", "tau = 0"),
}
MIXUP = '[[augmentation]]\nuse = "mixup"\n'
MANY = ["task.labels='multi'", "task.separator=';'", "data.label='many'"]
REGRESSION = ["task.use='tabular-regression'", "data.label='number'"]


def table(name, options=""):
    return f'[[extension]]\nuse = "{name}"\n{options}\n'


@pytest.fixture
def setup(tmp_path):
    """Return a function that assembles a recipe and lets its components attach."""

    def make(*tables, overrides=()):
        plan = plan_recipe(RECIPES["number"] + "".join(tables), overrides, COMPONENTS)
        built = assemble(plan, tmp_path / "run")
        if built.run.hooks.sft_setup is not None:
            built.run.hooks.sft_setup(run=built.run)
        return built

    return make


@pytest.mark.parametrize("name", STRENGTH)
def test_without_strength_it_is_not_there(carry_out, plain, name) -> None:
    epoch = "train.epochs=1"
    there = carry_out("number", table(name, STRENGTH[name][1]), overrides=[epoch])
    assert there.fingerprint == plain("number", epoch)[0].fingerprint


@pytest.mark.parametrize(
    "overrides", [(), pytest.param(MANY, marks=pytest.mark.slow)], ids=["single", "multi"]
)
@pytest.mark.parametrize("name", STRENGTH)
def test_a_resumed_run_is_bit_equal(carry_out, name, overrides) -> None:
    tables = (table(name, STRENGTH[name][0]), MIXUP)
    whole = carry_out("number", *tables, overrides=overrides, name="whole")
    with pytest.raises(Interrupted):
        carry_out("number", *tables, overrides=overrides, name="cut", stop_after=4)
    resumed = carry_out("number", *tables, overrides=overrides, name="cut", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert whole.fingerprint != carry_out("number", MIXUP, overrides=overrides).fingerprint


@pytest.mark.parametrize("name", STRENGTH)
def test_without_classes_it_is_refused(carry_out, name) -> None:
    with pytest.raises(RecipeError, match=f"`{name}` needs classes, and the task is regression"):
        carry_out("number", table(name), overrides=REGRESSION)


def test_rare_classes_are_drawn_as_often_as_others(setup) -> None:
    feed = setup(table("balanced-sampler")).feed.feeds["data"]
    label = np.asarray(feed.split.rows["label"])
    drawn = Counter(
        label[i] for epoch in range(60) for window in feed.windows(epoch) for i in window
    )
    total = 60 * 48
    assert Counter(label.tolist())[1] < 8
    for count in drawn.values():
        assert abs(count - total / 3) < 4 * (total * 2 / 9) ** 0.5


def test_focal_takes_the_place_of_the_loss(setup) -> None:
    overrides = ["task.class_weights='balanced'", "task.label_smoothing=0.1"]
    run = setup(table("focal", "gamma = 1.5"), overrides=overrides).run
    plain = setup(overrides=overrides).run
    batch, logits = (
        Batch({}, {"label": torch.tensor([0, 1, 2, 1])}, [0, 1, 2, 3]),
        torch.randn(4, 3),
    )
    weight = plain.task._weight
    term, plain_term = run.task.loss(logits, batch), plain.task.loss(logits, batch)
    expected = focal_sum(logits, batch.targets["label"], 1.5, weight, 0.1)
    torch.testing.assert_close(term.value, expected)
    assert (term.name, term.per) == (plain_term.name, plain_term.per) == ("task", "weight")
    assert term.value < plain_term.value


def test_adjusted_loss_is_cross_entropy_of_shifted_logits(setup) -> None:
    run, plain = setup(table("logit-adjustment", "tau = 0.7")).run, setup().run
    logits, label = torch.randn(16, 3), torch.randint(3, (16,))
    shares = np.bincount(run.splits["train"].rows["label"][:]) / 48
    shifted = logits + 0.7 * torch.tensor(shares).log().float()
    batch = Batch({}, {"label": label}, list(range(16)))
    torch.testing.assert_close(
        run.task.loss(logits, batch).value, plain.task.loss(shifted, batch).value
    )


@pytest.mark.parametrize("order", [("focal", "logit-adjustment"), ("logit-adjustment", "focal")])
def test_focal_and_adjustment_in_any_order(setup, order) -> None:
    run, focal = setup(*map(table, order)).run, setup(table("focal")).run
    logits = torch.randn(16, 3)
    batch = Batch({}, {"label": torch.randint(3, (16,))}, list(range(16)))
    shares = np.bincount(run.splits["train"].rows["label"][:]) / 48
    shifted = logits + torch.tensor(shares).log().float()
    torch.testing.assert_close(
        run.task.loss(logits, batch).value, focal.task.loss(shifted, batch).value
    )


@pytest.mark.parametrize("overrides", [(), MANY], ids=["single", "multi"])
def test_post_hoc_is_a_view_and_trains_as_ever(carry_out, overrides) -> None:
    plain = carry_out("number", overrides=overrides, name="plain")
    post = carry_out(
        "number",
        table("logit-adjustment", 'mode = "post-hoc"'),
        overrides=overrides,
        name="post",
    )
    assert post.fingerprint == plain.fingerprint
    lines = (post.folder / "metrics.jsonl").read_text().splitlines()
    assert any('"view": "adjusted"' in line for line in lines)


def test_it_finds_the_rare_class_more_often(carry_out) -> None:
    """What all of this is for: recall of a class that is one in eight, on 160 rows."""
    overrides = [
        "data.examples=352",
        "data.test=160",
        "data.validation=32",
        "train.epochs=10",
        "optimizer.lr=0.01",
        "backbone.hidden=[8]",
        "evaluation.every_epochs=10",
    ]
    recall = {
        name: carry_out("number", tables, overrides=overrides, name=name or "plain").metrics[
            "recall/y"
        ]
        for name, tables in {
            "": "",
            "balanced-sampler": table("balanced-sampler"),
            "logit-adjustment": table("logit-adjustment"),
        }.items()
    }
    assert recall["balanced-sampler"] > recall[""] + 0.2
    assert recall["logit-adjustment"] > recall[""] + 0.2
