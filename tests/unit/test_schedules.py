"""Schedules against those of transformers and torch, step by step."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import get_scheduler

from sft_engine.builtin import schedules
from sft_engine.builtin.optimizers import AdamW
from sft_engine.options import check_options, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

TOTAL = 40
NAMES = (
    "Constant",
    "Linear",
    "Cosine",
    "CosineRestarts",
    "SlantedTriangle",
    "Polynomial",
    "OneCycle",
    "WarmupStableDecay",
    "InverseSqrt",
    "Step",
    "Plateau",
)


def curve(schedule: Any, total: int = TOTAL) -> list[float]:
    return [schedule.factor(step, total) for step in range(total)]


def torch_curve(make: Callable[[torch.optim.Optimizer], Any], total: int) -> list[dict[str, Any]]:
    """Return the parameter group at each step of a torch scheduler over a learning rate of 1."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
    scheduler = make(optimizer)
    groups = []
    for step in range(total):
        groups.append({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return groups


def their_curve(name: str, warmup: int, total: int, count: int, **options: Any) -> list[float]:
    """Return the curve of `transformers.get_scheduler`."""

    def make(optimizer: torch.optim.Optimizer) -> Any:
        steps = {"num_warmup_steps": warmup, "num_training_steps": total}
        return get_scheduler(name, optimizer, **steps, scheduler_specific_kwargs=options)

    return [group["lr"] for group in torch_curve(make, count)]


CASES = [
    ("constant_with_warmup", schedules.Constant, {}, {}),
    ("linear", schedules.Linear, {}, {}),
    ("cosine", schedules.Cosine, {}, {}),
    ("cosine_with_restarts", schedules.Cosine, {"cycles": 3}, {"num_cycles": 3}),
    ("cosine_with_min_lr", schedules.Cosine, {"min_factor": 0.2}, {"min_lr_rate": 0.2}),
    ("polynomial", schedules.Polynomial, {"power": 3.0}, {"power": 3.0, "lr_end": 0.0}),
    (
        "polynomial",
        schedules.Polynomial,
        {"power": 0.5, "end_factor": 0.1},
        {"power": 0.5, "lr_end": 0.1},
    ),
    ("inverse_sqrt", schedules.InverseSqrt, {"timescale": 5}, {"timescale": 5}),
]


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(("name", "made", "ours", "theirs"), CASES)
def test_a_schedule_is_that_of_transformers_without_the_lost_first_step(
    name: str, made: Any, ours: dict[str, Any], theirs: dict[str, Any], warmup: int
) -> None:
    schedule = made(warmup=warmup, **ours)
    after = their_curve(name, warmup, TOTAL, TOTAL, **theirs)[warmup:]
    before = their_curve(name, warmup + 1, TOTAL + 1, TOTAL + 1, **theirs)[1 : warmup + 1]
    assert curve(schedule) == pytest.approx(before + after, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("min_factor", [0.0, 0.1])
def test_warmup_stable_decay_is_that_of_transformers(shape: Any, min_factor: float) -> None:
    schedule = schedules.WarmupStableDecay(warmup=7, decay=11, shape=shape, min_factor=min_factor)
    options = {"num_decay_steps": 11, "decay_type": shape, "min_lr_ratio": min_factor}
    theirs = their_curve("warmup_stable_decay", 7, TOTAL, TOTAL, **options)
    assert curve(schedule)[7:] == pytest.approx(theirs[7:], rel=1e-12)
    assert curve(schedule)[:7] == [(step + 1) / 8 for step in range(7)]


def test_inverse_sqrt_takes_its_timescale_from_the_warm_up() -> None:
    theirs = their_curve("inverse_sqrt", 7, TOTAL, TOTAL)
    assert curve(schedules.InverseSqrt(warmup=7))[7:] == pytest.approx(theirs[7:], rel=1e-12)


def test_a_decay_that_would_begin_inside_the_warm_up_begins_after_it() -> None:
    schedule = schedules.WarmupStableDecay(warmup=6, decay=8, shape="linear")
    expected = [(s + 1) / 7 for s in range(6)] + [1.0, 0.75, 0.5, 0.25]
    assert curve(schedule, 10) == pytest.approx(expected)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("warmup", [0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_is_that_of_torch(total: int, warmup: float, anneal: Any) -> None:
    if warmup * total == 1:
        return  # torch divides by zero there; the next test says what ours does
    schedule = schedules.OneCycle(warmup=warmup, anneal=anneal, momentum_low=0.8)
    theirs = torch_curve(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=total,
            pct_start=warmup,
            anneal_strategy=anneal,
            base_momentum=0.8,
        ),
        total,
    )
    assert schedule.momentum is not None
    momentum = [schedule.momentum(step, total) for step in range(total)]
    assert curve(schedule, total) == pytest.approx([g["lr"] for g in theirs], rel=1e-12)
    assert momentum == pytest.approx([g["momentum"] for g in theirs], rel=1e-12)


def test_one_cycle_with_a_rise_of_one_step_begins_at_its_peak() -> None:
    schedule = schedules.OneCycle(warmup=1, div_factor=10, final_div_factor=10, anneal="linear")
    assert curve(schedule, 4) == pytest.approx([1.0, 0.67, 0.34, 0.01])


def test_one_cycle_without_momentum_has_none() -> None:
    assert schedules.OneCycle(cycle_momentum=False).momentum is None


def test_one_cycle_trains_as_with_torch() -> None:
    """The rate and momentum that the loop sets into the groups, on a fused AdamW."""

    def train(ours: bool) -> torch.Tensor:
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
        optimizer = AdamW(lr=0.1).build([{"params": [weights]}])
        cycle = None if ours else lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
        schedule = schedules.OneCycle()
        for step in range(20):
            if ours:
                assert schedule.momentum is not None
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * schedule.factor(step, 20)
                    group["betas"] = (schedule.momentum(step, 20), group["betas"][1])
            optimizer.zero_grad()
            ((weights - 1) ** 4).sum().backward()
            optimizer.step()
            if cycle is not None and step < 19:
                cycle.step()
        return weights.detach()

    torch.testing.assert_close(train(ours=True), train(ours=False), rtol=1e-12, atol=0)


def test_step_is_multi_step_of_torch() -> None:
    schedule = schedules.Step(milestones=(0.25, 20, 33), gamma=0.5)
    theirs = torch_curve(
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [10, 20, 33], gamma=0.5), TOTAL
    )
    assert curve(schedule) == pytest.approx([group["lr"] for group in theirs])


def test_step_milestones_need_no_order() -> None:
    assert curve(schedules.Step(milestones=(30, 10))) == curve(schedules.Step(milestones=(10, 30)))


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("mode", ["rel", "abs"])
@pytest.mark.parametrize("seed", range(5))
def test_plateau_is_that_of_torch(direction: Any, mode: Any, seed: int) -> None:
    rng = random.Random(seed)
    options = {"patience": rng.randrange(3), "cooldown": rng.randrange(3), "threshold": 0.05}
    ours = schedules.Plateau(gamma=0.5, threshold_mode=mode, min_factor=0.01, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode=direction,
        factor=0.5,
        threshold_mode=mode,
        min_lr=0.01,
        eps=0.0,
        **options,
    )
    seen = []
    for _ in range(60):
        value = rng.choice([math.nan, math.inf, -0.2, *[rng.random()] * 9])
        ours.observe(value, direction)
        theirs.step(value)
        seen.append(ours.factor(0, 1))
        assert seen[-1] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert len(set(seen)) > 2


@pytest.mark.parametrize("resumed_at", range(0, 40, 3))
def test_plateau_goes_on_from_its_state(resumed_at: int) -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(40)]
    whole, first, second = (schedules.Plateau(cooldown=2, gamma=0.7) for _ in range(3))
    for value in values:
        whole.observe(value, "max")
    for value in values[:resumed_at]:
        first.observe(value, "max")
    second.load_state_dict(first.state_dict())
    for value in values[resumed_at:]:
        second.observe(value, "max")
    assert second.state_dict() == whole.state_dict()
    assert whole.scale < 1


def test_plateau_warms_up() -> None:
    schedule = schedules.Plateau(warmup=3, gamma=0.5, patience=0)
    schedule.observe(1.0, "max")
    schedule.observe(1.0, "max")
    assert curve(schedule, 5) == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])


def test_linear_by_hand() -> None:
    expected = [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert curve(schedules.Linear(warmup=3), 10) == pytest.approx(expected, rel=1e-15)
    assert curve(schedules.Linear(warmup=0.3), 10) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 5, 33])
def test_no_step_is_lost_or_above_the_learning_rate(name: str, total: int) -> None:
    factors = curve(getattr(schedules, name)(warmup=0.3), total)
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "OneCycle"])
def test_a_run_of_one_step_takes_it_at_the_full_rate(name: str) -> None:
    assert getattr(schedules, name)().factor(0, 1) == 1.0


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("OneCycle", "SlantedTriangle", "Step")]
)
def test_a_warm_up_longer_than_the_run_goes_on_rising(name: str) -> None:
    factors = curve(getattr(schedules, name)(warmup=50), 10)
    assert factors == pytest.approx([(step + 1) / 51 for step in range(10)])


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained_and_has_a_default(name: str) -> None:
    signature = signature_of(f"sft_engine.builtin.schedules:{name}")
    assert signature.summary.endswith(".")
    assert signature.names[0] == "warmup"
    assert [o.name for o in signature.options if not o.help or o.required] == []
    options, problems = check_options(signature, {}, key="schedule", owner=name)
    assert problems == []
    assert curve(getattr(schedules, name)(**options)) == curve(getattr(schedules, name)())


def test_a_typo_in_an_option_is_found_without_building() -> None:
    signature = signature_of("sft_engine.builtin.schedules:Cosine")
    _, [problem] = check_options(signature, {"warmpu": 1}, key="schedule", owner="cosine")
    assert problem.key == "schedule.warmpu"
    assert "`warmup`" in problem.hint


@pytest.mark.parametrize(
    ("cycles", "growth", "first"), [(3, 2, 10), (2, 3, 7), (4, 1, 5), (1, 1, 9)]
)
@pytest.mark.parametrize("min_factor", [0.0, 0.1])
def test_cosine_with_restarts_is_that_of_torch(
    cycles: int, growth: int, first: int, min_factor: float
) -> None:
    total = sum(first * growth**i for i in range(cycles))
    theirs = torch_curve(
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, first, T_mult=growth, eta_min=min_factor
        ),
        total,
    )
    ours = schedules.CosineRestarts(cycles=cycles, growth=growth, min_factor=min_factor)
    assert curve(ours, total) == pytest.approx([g["lr"] for g in theirs], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 4])
def test_restarts_of_equal_length_are_the_cycles_of_cosine(warmup: int) -> None:
    ours = schedules.CosineRestarts(warmup=warmup, cycles=3, growth=1.0, min_factor=0.2)
    theirs = schedules.Cosine(warmup=warmup, cycles=3, min_factor=0.2)
    assert curve(ours) == pytest.approx(curve(theirs), rel=1e-12, abs=1e-15)


def test_each_restart_begins_lower() -> None:
    ours = schedules.CosineRestarts(cycles=3, growth=2.0, decay=0.5, min_factor=0.1)
    rates = curve(ours, 70)
    assert [rates[0], rates[10], rates[30]] == pytest.approx([1.0, 0.5, 0.25])
    assert [rates[5], rates[20], rates[50]] == pytest.approx([0.55, 0.3, 0.175])  # halfway down


@pytest.mark.parametrize("total", [1, 2, 3, 7, 40, 97])
@pytest.mark.parametrize("cycles", [1, 2, 5])
def test_restarts_stay_between_the_ends_however_short_the_run(total: int, cycles: int) -> None:
    rates = curve(schedules.CosineRestarts(cycles=cycles, growth=1.7, min_factor=0.1), total)
    assert rates[0] == 1.0
    assert all(0.1 <= rate <= 1.0 for rate in rates)


@pytest.mark.parametrize(
    ("total", "cut_frac", "ratio"), [(100, 0.1, 32), (40, 0.25, 8), (60, 0.5, 2)]
)
def test_the_slanted_triangle_is_equation_3_of_the_paper(
    total: int, cut_frac: float, ratio: float
) -> None:
    def rate(t: int) -> float:
        cut = math.floor(total * cut_frac)
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        return (1 + p * (ratio - 1)) / ratio

    ours = schedules.SlantedTriangle(warmup=cut_frac, ratio=ratio)
    assert curve(ours, total) == pytest.approx([rate(t) for t in range(total)], rel=1e-12)


def test_the_slanted_triangle_of_a_run_too_short_to_rise_only_falls() -> None:
    assert curve(schedules.SlantedTriangle(ratio=4.0), 4) == pytest.approx(
        [1, 13 / 16, 5 / 8, 7 / 16]
    )
