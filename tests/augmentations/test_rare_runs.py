"""Samplers, focal loss and logit adjustment in whole runs."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from observers import COMPONENTS, RECIPES
from safetensors.torch import load_file

from sft_augmentations.rare import binary_focal_sum, focal_sum
from sft_engine import Batch, Interrupted, RecipeError
from sft_engine.assemble import assemble
from sft_engine.testing.runs import plan_recipe

STRENGTH = {
    "balanced-sampler": ("power = 0.5", "power = 0"),
    "class-weights": ("", "beta = 0"),
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


@pytest.mark.parametrize("overrides", [[], MANY], ids=["single", "multi"])
def test_weights_by_inverse_frequency_are_those_of_the_task(carry_out, overrides) -> None:
    weighed = carry_out(
        "number",
        table("class-weights", 'method = "inverse"'),
        overrides=overrides,
        name="component",
    )
    task = carry_out(
        "number", overrides=[*overrides, "task.class_weights='balanced'"], name="option"
    )
    plain = carry_out("number", overrides=overrides, name="plain")
    assert weighed.fingerprint == task.fingerprint != plain.fingerprint


@pytest.mark.parametrize("overrides", [[], MANY], ids=["single", "multi"])
def test_weights_hold_beside_everything_else(carry_out, setup, overrides) -> None:
    """Focal loss, adjusted logits and smoothed, mixed targets use them; a window in parts is the window."""
    tables = [table(n) for n in ("logit-adjustment", "focal", "class-weights", "balanced-sampler")]
    smooth = [*overrides, "task.label_smoothing=0.1"]
    run = setup(*tables, overrides=smooth).run
    weight = run.task.weight
    assert weight is not None
    logits = torch.randn(6, run.task.head.outputs)
    soft = torch.rand(6, run.task.head.outputs)
    batch = Batch({}, {"label": soft if overrides else soft.softmax(dim=1)}, list(range(6)))
    offsets = next(a.component for a in run.active if a.key == "extension[0]").offsets(run)
    loss_sum = binary_focal_sum if overrides else focal_sum
    expected = loss_sum(logits + offsets.float(), batch.targets["label"], 2.0, weight, 0.1)
    torch.testing.assert_close(run.task.loss(logits, batch).value, expected)
    one, parts = (
        carry_out(
            "number",
            *tables,
            overrides=[*smooth, f"train.micro_batch_size={size}"],
            name=f"size{size}",
        )
        for size in (16, 4)
    )
    first, second = (
        load_file(each.folder / "model" / "model.safetensors") for each in (one, parts)
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("tables", "overrides", "says"),
    [
        (
            [table("class-weights")],
            ["task.class_weights='balanced'"],
            r"extension\[0\].*`class-weights` beside task.class_weights = 'balanced'",
        ),
        (
            [table("class-weights")],
            ["task.class_weights=[1, 2, 3]"],
            r"beside task.class_weights = \[1.0, 2.0, 3.0\]: both weigh",
        ),
        ([table("class-weights")] * 2, [], r"extension\[1\].*is there twice"),
        ([table("class-weights", "beta = 1")], [], r"extension\[0\].beta"),
        ([table("class-weights", 'method = "root"')], [], r"extension\[0\].method"),
    ],
)
def test_weights_are_said_once(tables, overrides, says) -> None:
    with pytest.raises(RecipeError, match=says):
        plan_recipe(RECIPES["number"] + "".join(tables), overrides, COMPONENTS)


def test_tables_of_classes_are_recorded(carry_out) -> None:
    """In metrics.jsonl, report.json and what is printed, for classes and for labels."""
    for overrides, names in (([], "xyz"), (MANY, "pq")):
        done = carry_out("number", overrides=overrides, name=names)
        lines = map(json.loads, (done.folder / "metrics.jsonl").read_text().splitlines())
        report = json.loads((done.folder / "report.json").read_text())["metrics"]
        for record in [report, *(line for line in lines if line["kind"] == "evaluation")]:
            assert record["balanced-accuracy"] == record["balanced-accuracy"]
            for metric in ("precision", "recall", "f1", "support"):
                assert {f"{metric}/{name}" for name in names} <= set(record)
        assert sum(report[f"support/{name}"] for name in names) >= 8


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
