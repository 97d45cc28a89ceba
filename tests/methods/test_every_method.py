"""What holds for every component of sft-regularizers, one by one, in pairs and all together."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import (
    AGAIN,
    CASES,
    DOUBLE,
    RESULTS,
    compatible,
    difference,
    planned,
    recipe,
    records,
    trained,
    weights,
)

from sft_engine import Interrupted, RecipeError
from sft_regularizers import COMPONENTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function: the uninterrupted run of a component, trained once for all tests."""
    outcomes = {}

    def of(name):
        if name not in outcomes:
            text = recipe(*filter(None, [name]))
            outcomes[name] = trained(tmp_path_factory.mktemp("whole") / "run", text, DOUBLE)
        return outcomes[name]

    return of


def test_the_cases_are_all_components():
    assert set(CASES) == set(COMPONENTS)


@pytest.mark.parametrize("name", CASES)
def test_it_does_something(whole, name):
    """Otherwise the tests below would hold for nothing."""
    if name == "r-drop":  # without dropout two passes are one
        assert all(record["loss/r-drop"] == 0 for record in records(whole(name)))
    else:
        assert difference(whole(name), whole("")) > 1e-7


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].parts])
def test_accumulation_changes_nothing(tmp_path, whole, name):
    """A window of 16 in one piece, and in four."""
    text = recipe(name)
    parts = trained(tmp_path / "parts", text, [*DOUBLE, "train.micro_batch_size=4"])
    assert difference(parts, whole(name)) < 1e-11
    for one, other in zip(records(parts), records(whole(name)), strict=True):
        for key in one:
            if key.startswith(("loss", "grad_norm")):
                assert one[key] == pytest.approx(other[key], rel=1e-9, abs=1e-11), key


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_bit_equal(tmp_path, whole, name):
    """The component's state is part of the fingerprint, so it has survived."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        trained(folder, recipe(name), DOUBLE, stop_after=2)
    torch.manual_seed(1)  # a fresh process has another state
    resumed = trained(folder, recipe(name), DOUBLE, resume=True)
    assert resumed.fingerprint == whole(name).fingerprint
    assert difference(resumed, whole(name)) == 0


def test_all_together_resume_bit_equal(tmp_path):
    """With dropout, AdamW, micro-batches and evaluations in between."""
    noisy = [
        "backbone.dropout=0.3",
        "optimizer.use=adamw",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0",
        "train.micro_batch_size=6",
        "evaluation.every_steps=1",
    ]
    text = together()
    one = trained(tmp_path / "one", text, noisy)
    folder = tmp_path / "other"
    for at in (0, 3):
        with pytest.raises(Interrupted):
            trained(folder, text, noisy, stop_after=at, resume=at > 0)
    resumed = trained(folder, text, noisy, resume=True)
    assert resumed.fingerprint == one.fingerprint
    assert difference(resumed, one) == 0
    views = {record["view"] for record in records(one, "evaluation")}
    assert views == {"", "ema", "swa", "lawa"}


def together(*, zero=False):
    """Return the recipe with all components that go together."""
    return recipe(*compatible(), zero=zero, final=True)


@pytest.mark.parametrize("others", [compatible(), ["asam", "bss"], ["fgm"]], ids=len)
def test_zero_strength_is_absence_bit_for_bit(tmp_path, whole, others):
    """All at once: what changes nothing together changes nothing alone."""
    text = recipe(*others, zero=True, final=True)
    assert difference(trained(tmp_path / "zero", text, DOUBLE), whole("")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_zero_strength_of_each_is_absence_bit_for_bit(tmp_path, whole, name):
    zero = trained(tmp_path / "zero", recipe(name, zero=True), DOUBLE)
    assert difference(zero, whole("")) == 0


@pytest.mark.parametrize("others", [compatible(), ["asam", "bss"], ["fgm"]], ids=len)
def test_bf16_runs(tmp_path, others):
    outcome = trained(tmp_path / "run", recipe(*others, final=True), ["train.precision=bf16"])
    assert_finite(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bf16_runs_with_each(tmp_path, name):
    """And learns what float32 learns, to the digits that bf16 has."""
    half = trained(tmp_path / "half", recipe(name), ["train.precision=bf16"])
    assert_finite(half)
    if name != "spike-guard":  # judges by a margin that rounding may cross
        assert difference(half, trained(tmp_path / "full", recipe(name))) < 0.05


def assert_finite(outcome):
    assert all(weight.isfinite().all() for weight in weights(outcome).values())
    assert all(math.isfinite(r["loss"]) for r in records(outcome))


@pytest.mark.slow
@pytest.mark.parametrize("first", CASES)
def test_every_pair_trains_or_is_refused(tmp_path, first):
    """Two steps each; in the order of the recipe that is the other one than that of the table too."""
    names = list(CASES)
    for second in names[names.index(first) + 1 :]:
        text = recipe(second, first)
        if is_refused(first, second):
            with pytest.raises(RecipeError, match="both"):
                planned(text)
            text = recipe(second, first, final=True)
            if "wise-ft" not in (first, second) and {first, second} <= set(AGAIN):
                continue
        outcome = trained(tmp_path / second, text, ["train.steps=2"])
        assert_finite(outcome)


def is_refused(first, second):
    return any({first, second} <= set(group) for group in (AGAIN, RESULTS))


@pytest.mark.parametrize(
    "pair", [p for group in (AGAIN, RESULTS) for p in itertools.combinations(group, 2)]
)
def test_what_does_not_go_together_is_refused(pair):
    with pytest.raises(RecipeError, match=rf"regularizer\[1\].*{pair[1]} beside {pair[0]}: both"):
        planned(recipe(*pair))


REFUSALS = {
    "averages are not what would be saved": (
        "ema",
        ["checkpoint.best=auto"],
        r"`checkpoint.best = \"auto\"` would put others in place.*set `checkpoint.best = \"last\"`",
    ),
    "weight decay pulls elsewhere": (
        "l2-sp",
        ["optimizer.weight_decay=0.1"],
        r"optimizer.weight_decay.*found 0.1, which pulls to zero the weights that l2-sp pulls",
    ),
    "a matrix is cut": (
        "bss",
        ["train.micro_batch_size=4"],
        r"bss looks at a batch as one matrix, and `train.micro_batch_size` = 4 cuts it",
    ),
    "a compiled model does not notice": (
        "neftune",
        ["train.compile=true"],
        r"neftune works inside the model",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_check_refuses_with_the_reason(why):
    name, overrides, message = REFUSALS[why]
    with pytest.raises(RecipeError, match=message):
        planned(recipe(name), overrides)


def test_the_default_weight_decay_is_refused_before_training(tmp_path):
    with pytest.raises(RecipeError, match='to "off" \\(no decay where it pulls\\) or "keep"'):
        trained(tmp_path / "run", recipe("l2-sp"), ["optimizer.use=adamw"])
