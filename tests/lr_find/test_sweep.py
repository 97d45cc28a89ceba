"""The range test on real runs: what it measures, and that nothing of it is left."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sft_engine import (
    Action,
    Capabilities,
    DivergedError,
    Interrupted,
    RecipeError,
    Verdict,
    hookimpl,
)
from sft_engine.assemble import assemble
from sft_engine.checkpoint import capture
from sft_engine.lr_range import RangeSettings, find, range_test
from sft_engine.lr_range.curve import rate_at
from sft_engine.state import digest
from sft_engine.testing.runs import TINY, plan_recipe
from sft_engine.training import train

SHORT = RangeSettings(lowest=1e-4, highest=1.0, steps=12)
NOISY = ["backbone.dropout=0.3", "train.micro_batch_size=6"]
COMPONENTS = {
    ("extension", "test/scales"): f"{__name__}:Scales",
    ("extension", "test/thaw"): f"{__name__}:Thaw",
    ("extension", "test/nan"): f"{__name__}:Nan",
    ("extension", "test/back"): f"{__name__}:Back",
    ("extension", "test/sum"): f"{__name__}:Sum",
    ("tracker", "test/tracker"): f"{__name__}:Tracker",
}


class Scales:
    """The embeddings learn at a tenth; notes every learning rate."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    @hookimpl
    def sft_param_groups(self, run, groups):
        for group in groups:
            group.lr_scale = 0.1 if group.layer_group == 0 else 1.0

    @hookimpl
    def sft_gradients(self, run):
        self.seen.append([group["lr"] for group in run.optimizer.param_groups])


class Thaw:
    """Freezes the embeddings for three steps."""

    @hookimpl
    def sft_step_start(self, run):
        run.model.embeddings.requires_grad_(run.clock.step >= 3)


class Nan:
    """Makes the gradient NaN from a step on.

    Args:
        step: That one.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step

    @hookimpl
    def sft_gradients(self, run):
        if run.clock.step >= self.step:
            run.model.head.bias.grad.fill_(torch.nan)


class Back:
    """Rolls back in the sixth step."""

    capabilities = Capabilities(rolls_back=True)

    @hookimpl
    def sft_step_verdict(self, run):
        return Verdict(Action.ROLL_BACK, "a spike") if run.clock.step == 5 else None


class Sum:
    """State that every step changes."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    @hookimpl
    def sft_step_end(self, run):
        self.total += run.model.head.weight.detach().sum()

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"].clone()


class Tracker:
    """Fails if anything is tracked."""

    @hookimpl
    def sft_log(self, record):
        raise AssertionError("a tracker was told of a range test")


def assembled(folder, *overrides, text=TINY):
    built = assemble(plan_recipe(text, overrides, COMPONENTS), folder)
    built.run.record = lambda _: None
    return built


def bits(run):
    """Return a hash of all state, generators included, and the flags beside it."""
    flags = [p.requires_grad for p in run.model.parameters()]
    modes = [module.training for module in run.model.modules()]
    grads = [p.grad for p in run.model.parameters() if p.grad is not None]
    return digest(capture(run)), flags, modes, grads, run.clock, run.phases, run.schedule


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_a_run_is_as_it_was_bit_for_bit(tmp_path, optimizer):
    text = TINY + "".join(f'[[extension]]\nuse = "test/{name}"\n' for name in ("thaw", "sum"))
    # Not fused: torch's fused SGD cannot take in a parameter that begins to train later.
    own = [f"optimizer.use={optimizer}", "optimizer.implementation=foreach"]
    built = assembled(tmp_path / "run", *NOISY, *own, text=text)
    before = bits(replace_clock(built.run))
    found = range_test(built, SHORT)
    assert len(found.lrs) == 12
    assert bits(replace_clock(built.run)) == before
    assert not (tmp_path / "run").exists()


def replace_clock(run):
    """Return the run with a copy of its clock, which is changed in place."""
    run.clock = replace(run.clock)
    return run


def test_training_after_a_range_test_is_that_without_one(tmp_path):
    plan = plan_recipe(TINY, NOISY)
    plain = train(plan, tmp_path / "plain").fingerprint
    found = find(plan, SHORT)
    assert len(found.losses) == 12
    assert train(plan, tmp_path / "after").fingerprint == plain
    assert sorted(p.name for p in tmp_path.iterdir()) == ["after", "plain"]


def test_the_first_loss_is_that_of_training(tmp_path):
    train(plan_recipe(TINY, ["optimizer.lr=1e-4", "schedule.use=constant"]), tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    first = next(r for r in map(json.loads, lines) if r["kind"] == "train")
    assert find(plan_recipe(TINY), SHORT).losses[0] == pytest.approx(first["loss"], rel=1e-6)


def test_accumulation_changes_nothing():
    whole = find(plan_recipe(TINY, ["backbone.dtype=float64"]), SHORT)
    parts = find(plan_recipe(TINY, ["backbone.dtype=float64", "train.micro_batch_size=3"]), SHORT)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9)


def test_all_groups_keep_their_ratio_and_rise_as_asked(tmp_path):
    built = assembled(
        tmp_path,
        "optimizer.use=sgd",
        "optimizer.lr=0.02",
        text=TINY + '[[extension]]\nuse = "test/scales"\n',
    )
    found = range_test(built, SHORT)
    scales = next(a.component for a in built.run.active if a.planned.name == "test/scales")
    wanted = [rate_at(i, 12, 1e-4, 1.0) for i in range(12)]
    factors = [group.lr_scale for group in built.run.parameter_groups]
    assert sorted(set(factors)) == [0.1, 1.0]
    for lr, rates in zip(wanted, scales.seen, strict=True):
        assert rates == pytest.approx([lr * factor for factor in factors], rel=1e-12)
    assert found.lrs == pytest.approx(wanted, rel=1e-12)
    assert (found.key, found.before) == ("optimizer.lr", 0.02)


def test_more_steps_than_the_run_has():
    found = find(plan_recipe(TINY, ["train.steps=2"]), SHORT)
    assert (len(found.lrs), found.reason) == (12, "all steps done")


def test_the_first_phase_with_its_own_rate():
    text = TINY + '[[phase]]\nname = "a"\nlr = 0.5\nsteps = 2\n[[phase]]\nname = "b"\n'
    found = find(plan_recipe(text), SHORT)
    assert (found.key, found.before, len(found.lrs)) == ("phase[0].lr", 0.5, 12)
    assert found.lrs[-1] == pytest.approx(1.0)


def test_it_ends_where_the_loss_explodes():
    wild = RangeSettings(lowest=1e-3, highest=1e4, steps=60, smoothing=0.5)
    found = find(plan_recipe(TINY, ["optimizer.use=sgd", "train.clip_norm=0"]), wild)
    assert len(found.lrs) < 60
    assert "exploded" in found.reason or "diverged" in found.reason


def test_it_ends_where_the_gradient_is_not_finite():
    text = TINY + '[[extension]]\nuse = "test/nan"\nstep = 4\n'
    found = find(plan_recipe(text, (), COMPONENTS), SHORT)
    # The loss of the step is known though its gradient is NaN.
    assert len(found.lrs) == 5
    assert found.reason.startswith("training diverged at 0.0028: the gradient is nan")


def test_a_loss_that_is_nan_from_the_start_is_an_error(tmp_path):
    built = assembled(tmp_path)
    with torch.no_grad():
        built.run.model.head.bias.fill_(torch.nan)
    with pytest.raises(DivergedError, match="step 0"):
        range_test(built, SHORT)


def test_a_signal_leaves_the_run_as_it_was(tmp_path):
    class Asked:
        received = 15

        def sentence(self, step):
            return "a checkpoint is written"

    built = assembled(tmp_path)
    before = bits(replace_clock(built.run))
    with pytest.raises(Interrupted, match="nothing was changed"):
        range_test(built, SHORT, signals=Asked())
    assert bits(replace_clock(built.run)) == before


def test_it_ends_where_a_component_rolls_back():
    text = TINY + '[[extension]]\nuse = "test/back"\n'
    found = find(plan_recipe(text, (), COMPONENTS), SHORT)
    assert len(found.lrs) == 5
    assert found.reason == "a component rolled the step back at 0.0066"


def test_data_may_be_fetched_in_the_background():
    fetched = find(plan_recipe(TINY, ["train.workers=1"]), SHORT)
    assert fetched.losses == find(plan_recipe(TINY), SHORT).losses


def test_trackers_hear_nothing():
    found = find(plan_recipe(TINY + '[[tracker]]\nuse = "test/tracker"\n', (), COMPONENTS), SHORT)
    assert len(found.lrs) == 12


def test_a_rate_of_zero_has_no_ratio():
    with pytest.raises(RecipeError, match=r"`phase\[0\].lr`: found 0"):
        find(plan_recipe(TINY + '[[phase]]\nname = "a"\nlr = 0.0\n'), SHORT)


def test_a_suggestion_trains_better_than_the_ends_of_the_range(tmp_path):
    found = find(plan_recipe(TINY), RangeSettings(lowest=1e-6, highest=100.0, steps=80))
    lr = found.chosen("valley")
    assert 1e-6 < lr < 10

    def loss(rate):
        overrides = [f"optimizer.lr={rate!r}", "train.epochs=6", "evaluation.metrics=['loss']"]
        overrides += ["checkpoint.best=last"]
        return train(plan_recipe(TINY, overrides), tmp_path / f"run-{rate}").metrics["loss"]

    assert loss(lr) < loss(1e-6)
