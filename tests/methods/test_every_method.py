"""What holds for every component of the shelf, one by one, in pairs and all together.

The claims, each on the tiny model of a kind of data that the component is for:

* it changes the run; without strength it changes nothing, bit for bit;
* a window of 16 in one piece is a window of 4 times 4;
* a run that was interrupted goes on bit-equal, its state included (killed: see test_processes);
* two processes are one (test_processes);
* bf16 runs, and learns what float32 learns;
* it trains beside each of the others, or `check` says why not.
"""

from __future__ import annotations

import pytest
import torch
from cases import (
    ADAPTERS,
    ALL,
    CASES,
    DOUBLE,
    EXCLUDE,
    RESULTS,
    TEXTS,
    assert_finite,
    compatible,
    difference,
    excludes,
    home_of,
    needs,
    pairs,
    planned,
    recipe,
    records,
    refusal,
    shelf,
    trained,
)

from sft_engine import DataError, Interrupted, RecipeError

PARTS = ["train.micro_batch_size=4"]
LIKE_OTHERS = [name for name in TEXTS if name not in ("keyboard-typos", "eda", "cutoff")]
"""They differ from others in pure functions alone, which have tests of their own."""


def each(names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name in names]


EVERY = each(CASES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function: an uninterrupted run, trained once for all tests."""
    outcomes = {}

    def of(text, overrides):
        key = (text, *overrides)
        if key not in outcomes:
            outcomes[key] = trained(tmp_path_factory.mktemp("whole") / "run", text, overrides)
        return outcomes[key]

    return of


@pytest.fixture
def whole(runs):
    """Return a function: the run with a component."""
    return lambda name: runs(recipe(name), [*DOUBLE, *needs([name])])


@pytest.fixture
def absent(runs):
    """Return a function: the run without a component, on the same data and model."""
    return lambda name: runs(recipe(home=home_of([name])), [*DOUBLE, *needs([name])])


def test_every_component_has_a_case():
    """Whoever adds one adds a line to CASES."""
    assert {case.use or name for name, case in CASES.items()} == set(shelf())


@pytest.mark.parametrize("name", EVERY)
def test_it_does_something(whole, absent, name):
    """Otherwise the tests below would hold for nothing."""
    if name == "r-drop":  # without dropout two passes are one
        assert all(record["loss/r-drop"] == 0 for record in records(whole(name)))
    else:
        assert difference(whole(name), absent(name)) > 1e-7


@pytest.mark.parametrize("name", each(n for n, case in CASES.items() if case.zero is not None))
def test_zero_strength_is_absence_bit_for_bit(tmp_path, absent, name):
    text = recipe(name, zero=True)
    zero = trained(tmp_path / "zero", text, [*DOUBLE, *needs([name])])
    assert difference(zero, absent(name)) == 0
    assert zero.metrics == absent(name).metrics


def test_who_has_no_zero_says_why():
    assert all(case.why for case in CASES.values() if case.zero is None)


@pytest.mark.parametrize("name", each(n for n, case in CASES.items() if not case.whole))
def test_accumulation_changes_nothing(tmp_path, whole, name):
    """A window of 16 in one piece, and in four."""
    parts = trained(tmp_path / "parts", recipe(name), [*DOUBLE, *needs([name]), *PARTS])
    assert difference(parts, whole(name)) < 1e-11
    for one, other in zip(records(parts), records(whole(name)), strict=True):
        for key in one:
            if key.startswith(("loss", "grad_norm")):
                assert one[key] == pytest.approx(other[key], rel=1e-9, abs=1e-11), key


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.whole and n != "bss"])
def test_what_is_of_a_micro_batch_trains_in_parts(tmp_path, whole, name):
    """It is another run, and no worse: as many steps, and finite."""
    parts = trained(tmp_path / "parts", recipe(name), [*DOUBLE, *needs([name]), *PARTS])
    assert_finite(parts)
    assert difference(parts, whole(name)) > 0


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_run_ends_bit_equal(tmp_path, whole, name):
    """The component's state is part of the fingerprint, so it has survived."""
    folder, overrides = tmp_path / "run", [*DOUBLE, *needs([name])]
    with pytest.raises(Interrupted):
        trained(folder, recipe(name), overrides, stop_after=2)
    torch.manual_seed(1)  # a fresh process has another state
    resumed = trained(folder, recipe(name), overrides, resume=True)
    assert resumed.fingerprint == whole(name).fingerprint
    assert difference(resumed, whole(name)) == 0


@pytest.mark.parametrize("home", ALL)
def test_all_together_resume_bit_equal(tmp_path, home):
    """With dropout, AdamW, micro-batches and evaluations in between."""
    names = compatible(home)
    noisy = [
        *needs(names),
        "backbone.dropout=0.3",
        "optimizer.use=adamw",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0",
        "train.micro_batch_size=6",
        "evaluation.every_steps=1",
    ]
    text = recipe(*names, final=False, home=home)
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


@pytest.mark.parametrize("home", ALL)
def test_bf16_runs(tmp_path, home):
    names = compatible(home)
    text = recipe(*names, final=False, home=home)
    outcome = trained(tmp_path / "run", text, [*needs(names), "train.precision=bf16"])
    assert_finite(outcome)


ON_A_MARGIN = ("spike-guard",)
"""What judges by a margin that rounding may cross."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bf16_runs_with_each(tmp_path, name):
    """And learns what float32 learns, to the digits that bf16 has."""
    half = trained(tmp_path / "half", recipe(name), [*needs([name]), "train.precision=bf16"])
    assert_finite(half)
    if name not in ON_A_MARGIN:
        full = trained(tmp_path / "full", recipe(name), needs([name]))
        assert difference(half, full) < 0.05


# --- beside the others ----------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [p for p in pairs() if excludes(*p) or set(p) <= set(RESULTS)])
def test_what_does_not_go_together_is_refused(pair):
    said = refusal(*pair, final=True)
    if set(pair) <= set(EXCLUDE[1]):
        assert "found a second table `[freezing]`" in said
    elif "augmix with its term" in pair:
        assert f"`{pair[1]}` mixes two" in said
    elif pair[1] in ADAPTERS:
        assert f"{pair[0]} beside " in said
    else:
        assert f"{pair[1]} beside {pair[0]}: both" in said


ELSEWHERE = [(name, kind) for name, case in CASES.items() for kind in ALL if kind not in case.homes]


@pytest.mark.parametrize(("name", "kind"), ELSEWHERE)
def test_other_data_is_refused_in_a_sentence(tmp_path, name, kind):
    """Before training; or, by what looks at a batch, at its first one."""
    with pytest.raises((RecipeError, DataError)) as caught:
        trained(tmp_path / "run", recipe(name, home=kind), needs([name]))
    assert len(str(caught.value).splitlines()) == 1
    said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert (CASES[name].use or name) in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, case in CASES.items() for kind in case.homes[1:]]
)
def test_it_trains_on_other_data_that_it_takes(tmp_path, name, kind):
    text, overrides = recipe(name, home=kind), [*DOUBLE, *needs([name])]
    one = trained(tmp_path / "run", text, overrides)
    assert_finite(one)
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", text, overrides, stop_after=2)
    assert trained(tmp_path / "cut", text, overrides, resume=True).fingerprint == one.fingerprint


# --- beside settings of the recipe ----------------------------------------------------------------

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
    "targets are smoothed twice": (
        "label-smoothing",
        ["task.label_smoothing=0.1"],
        r"label-smoothing beside `task.label_smoothing` = 0.1: both smooth the targets",
    ),
    "classes are weighed twice": (
        "class-weights",
        ["task.class_weights=balanced"],
        r"`class-weights` beside task.class_weights = 'balanced': both weigh the classes",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_check_refuses_with_the_reason(why):
    name, overrides, message = REFUSALS[why]
    with pytest.raises(RecipeError, match=message):
        planned(recipe(name), overrides)


def test_the_default_weight_decay_is_refused_by_check():
    with pytest.raises(RecipeError, match=r'found 0.01, .* to "off" or "keep"'):
        planned(recipe("l2-sp"), ["optimizer.use=adamw"])
