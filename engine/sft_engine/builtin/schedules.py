"""Learning-rate schedules: closed-form functions of the position, and thin classes around them.

Every schedule can warm up. A `warmup` below 1 is a share of the run, else a number of steps. With
W warm-up steps the step with index s < W runs at (s + 1) / (W + 1) of the learning rate, and step W
is the first at full rate. This is the curve of `transformers.get_scheduler` without its first step,
whose learning rate is 0 and which trains nothing: from step W on both are equal, and before it ours
at s with W is theirs at s + 1 with W + 1. The last step has index total - 1; a rate that falls to 0
would reach it at index `total` only, so no step is lost there either.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from sft_engine.builtin.stopping import check_watched, is_better, watched
from sft_engine.hookspecs import hookimpl

if TYPE_CHECKING:
    from sft_engine.flow import Run, View


Warmup = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
Momentum = Annotated[float, Ge(0), Lt(1)]


def in_steps(amount: float, total: int) -> int:
    """Return an amount of a run in steps: below 1 it is a share of `total`, else already steps."""
    return round(amount * total if amount < 1 else amount)


# --- Factors of the learning rate: steps 0 .. total - 1, lengths in steps -------------------------


def warm_up(step: int, warmup: int) -> float:
    """Rise linearly to 1, which is reached at step `warmup`; no step has factor 0."""
    return (step + 1) / (warmup + 1) if step < warmup else 1.0


def polynomial(
    step: int, total: int, warmup: int = 0, power: float = 1.0, end_factor: float = 0.0
) -> float:
    """Fall from 1 to `end_factor` with the given power; power 1 is the linear schedule."""
    if step < warmup:
        return warm_up(step, warmup)
    left = 1 - (step - warmup) / (total - warmup)
    return float((1 - end_factor) * left**power + end_factor)


def cosine(
    step: int, total: int, warmup: int = 0, cycles: int = 1, min_factor: float = 0.0
) -> float:
    """Fall along half a cosine wave from 1 to `min_factor`, `cycles` times (Loshchilov 2017)."""
    if step < warmup:
        return warm_up(step, warmup)
    # Integers, so that a cycle begins exactly where it should.
    within = (cycles * (step - warmup)) % (total - warmup) / (total - warmup)
    return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * within)) / 2


def cosine_restarts(
    step: int,
    total: int,
    warmup: int = 0,
    cycles: int = 1,
    growth: float = 1.0,
    decay: float = 1.0,
    min_factor: float = 0.0,
) -> float:
    """Fall along half a cosine wave and jump back up, `cycles` times (Loshchilov and Hutter 2017, SGDR).

    Each cycle is `growth` times as long as the one before (`T_mult` in section 3), all together fill the
    run; each begins at `decay` times the rate at which the one before began.
    """
    if step < warmup:
        return warm_up(step, warmup)
    position, length = step - warmup, total - warmup
    begins = [
        length * _grown(index, growth) / _grown(cycles, growth) for index in range(cycles + 1)
    ]
    # Rounded, so that a cycle begins exactly where it should.
    index = min(bisect.bisect_right([round(begin, 6) for begin in begins], position), cycles) - 1
    share = (position - begins[index]) / (begins[index + 1] - begins[index])
    peak = decay**index
    return min_factor + (peak - min_factor) * (1 + math.cos(math.pi * max(share, 0.0))) / 2


def _grown(count: int, growth: float) -> float:
    """Return 1 + growth + growth**2 + …, as many terms as `count`."""
    return math.fsum(growth**power for power in range(count))


def slanted_triangle(step: int, total: int, cut: int, ratio: float = 32.0) -> float:
    """Rise along a line for `cut` steps, then fall along a longer one (Howard and Ruder 2018, equation 3).

    Step 0 runs at 1 / ratio of the rate, step `cut` at all of it, and step `total`, which is none any
    more, would be at 1 / ratio again.
    """
    share = step / cut if step < cut else 1 - (step - cut) / (total - cut)
    return (1 + share * (ratio - 1)) / ratio


def inverse_sqrt(step: int, warmup: int = 0, timescale: int = 0) -> float:
    """Fall as 1 / sqrt(1 + (step - warmup) / timescale); 0 means `warmup` steps, or 10,000."""
    if step < warmup:
        return warm_up(step, warmup)
    return 1 / math.sqrt(1 + (step - warmup) / (timescale or warmup or 10_000))


def warmup_stable_decay(
    step: int,
    total: int,
    warmup: int = 0,
    decay: int = 0,
    shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt",
    min_factor: float = 0.0,
) -> float:
    """Stay at 1 between warm-up and the last `decay` steps, then fall to `min_factor`.

    `1-sqrt` did best in Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations", section 4. A decay that would begin inside the warm-up begins after it.
    """
    begin = max(warmup, total - decay)
    if step < begin:
        return warm_up(step, warmup)
    share = (step - begin) / (total - begin)
    left = {
        "linear": 1 - share,
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "1-sqrt": 1 - math.sqrt(share),
    }[shape]
    return min_factor + (1 - min_factor) * left


def milestone_decay(step: int, milestones: list[int], gamma: float, warmup: int = 0) -> float:
    """Multiply by `gamma` at each of the (sorted) milestones."""
    passed = bisect.bisect_right(milestones, step)
    return float(warm_up(step, warmup) * gamma**passed)


def one_cycle_share(step: int, total: int, warmup: float) -> tuple[bool, float]:
    """Return whether the cycle still rises, and the share of that part which is done.

    As `torch.optim.lr_scheduler.OneCycleLR`: the peak lies at `warmup` - 1, a real number.
    """
    peak = warmup - 1
    if step <= peak:
        return True, step / peak if peak > 0 else 1.0
    return False, (step - peak) / (total - 1 - peak)


def anneal(start: float, end: float, share: float, shape: Literal["cos", "linear"]) -> float:
    """Go from `start` to `end` along half a cosine wave or a line."""
    if shape == "cos":
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
    return start + (end - start) * share


# --- Components ----------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class Constant:
    """The same learning rate throughout.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
    """

    warmup: Warmup = 0.0

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        return warm_up(step, in_steps(self.warmup, total))


@dataclass(eq=False, kw_only=True)
class Linear:
    """A straight line down to 0.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        end_factor: Share of `lr` that the line leads to.
    """

    warmup: Warmup = 0.1
    end_factor: Share = 0.0

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        return polynomial(step, total, in_steps(self.warmup, total), 1.0, self.end_factor)


@dataclass(eq=False, kw_only=True)
class Cosine:
    """Half a cosine wave down to 0, once or several times.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        min_factor: Share of `lr` that the wave leads to.
        cycles: How often the rate falls; each time but the first it jumps back to `lr`.
    """

    warmup: Warmup = 0.1
    min_factor: Share = 0.0
    cycles: Annotated[int, Ge(1)] = 1

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        warmup = in_steps(self.warmup, total)
        return cosine(step, total, warmup, self.cycles, self.min_factor)


@dataclass(eq=False, kw_only=True)
class CosineRestarts:
    """Half a cosine wave down, several times, each longer than the one before (SGDR).

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        cycles: How often the rate falls; together the cycles fill the run.
        growth: Length of a cycle over that of the one before.
        decay: Rate at which a cycle begins over that of the one before.
        min_factor: Share of `lr` that each wave leads to.
    """

    warmup: Warmup = 0.0
    cycles: Annotated[int, Ge(1)] = 3
    growth: Annotated[float, Ge(1)] = 2.0
    decay: Annotated[float, Gt(0), Le(1)] = 1.0
    min_factor: Share = 0.0

    def __post_init__(self) -> None:
        if self.decay ** (self.cycles - 1) < self.min_factor:
            raise ValueError("`decay` lets the last cycle begin below `min_factor`: lower that")

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        warmup = in_steps(self.warmup, total)
        shape = (self.cycles, self.growth, self.decay, self.min_factor)
        return cosine_restarts(step, total, warmup, *shape)


@dataclass(eq=False, kw_only=True)
class SlantedTriangle:
    """A short line up and a long line down, of ULMFiT (Howard and Ruder 2018).

    Args:
        warmup: The rising part: below 1 a share of the run, else steps (`cut_frac` in the paper).
        ratio: How many times lower than `lr` the rate is at both ends.
    """

    warmup: Warmup = 0.1
    ratio: Annotated[float, Ge(1)] = 32.0

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        cut = in_steps(self.warmup, total) if self.warmup >= 1 else int(self.warmup * total)
        return slanted_triangle(step, total, cut, self.ratio)


@dataclass(eq=False, kw_only=True)
class Polynomial:
    """A power of the remaining share of the run.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        power: 1 is a line, 2 a parabola that flattens out, 0.5 one that falls ever faster.
        end_factor: Share of `lr` that the curve leads to.
    """

    warmup: Warmup = 0.1
    power: Positive = 1.0
    end_factor: Share = 0.0

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        return polynomial(step, total, in_steps(self.warmup, total), self.power, self.end_factor)


@dataclass(eq=False, kw_only=True)
class OneCycle:
    """Up to `lr` and far down again, momentum the other way round (Smith and Topin 2017).

    The numbers are those of `torch.optim.lr_scheduler.OneCycleLR`.

    Args:
        warmup: The rising part: below 1 a share of the run, else steps (`pct_start` in torch).
        div_factor: The first step runs at `lr` divided by this.
        final_div_factor: The last step runs at the first step's rate divided by this.
        anneal: Shape of both parts.
        cycle_momentum: Move momentum (or beta1) against the learning rate.
        momentum_low: Momentum at the peak of the learning rate.
        momentum_high: Momentum at both ends.
    """

    warmup: Warmup = 0.3
    div_factor: Positive = 25.0
    final_div_factor: Positive = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    cycle_momentum: bool = True
    momentum_low: Momentum = 0.85
    momentum_high: Momentum = 0.95
    momentum: Callable[[int, int], float] | None = field(init=False)
    """Momentum of a step, which the loop sets; None where it is not cycled."""

    def __post_init__(self) -> None:
        self.momentum = self._momentum if self.cycle_momentum else None

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        first = 1 / self.div_factor
        return self._at(step, total, first, 1.0, first / self.final_div_factor)

    def _momentum(self, step: int, total: int) -> float:
        return self._at(step, total, self.momentum_high, self.momentum_low, self.momentum_high)

    def _at(self, step: int, total: int, first: float, peak: float, last: float) -> float:
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        rising, share = one_cycle_share(step, total, warmup)
        start, end = (first, peak) if rising else (peak, last)
        return anneal(start, end, share, self.anneal)


@dataclass(eq=False, kw_only=True)
class WarmupStableDecay:
    """Constant for most of the run, with a decay at its end.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        decay: Length of the decay: below 1 a share of the run, else steps.
        shape: How the rate falls.
        min_factor: Share of `lr` that the decay leads to.
    """

    warmup: Warmup = 0.1
    decay: Annotated[float, Ge(0)] = 0.2
    shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    min_factor: Share = 0.0

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        warmup, decay = in_steps(self.warmup, total), in_steps(self.decay, total)
        return warmup_stable_decay(step, total, warmup, decay, self.shape, self.min_factor)


@dataclass(eq=False, kw_only=True)
class InverseSqrt:
    """Falls with the inverse square root of the step; needs no end of the run.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        timescale: Steps after the warm-up until the rate is 1/sqrt(2); 0 means as many as the
            warm-up, or 10000 where there is none.
    """

    warmup: Warmup = 0.1
    timescale: Annotated[int, Ge(0)] = 0

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        return inverse_sqrt(step, in_steps(self.warmup, total), self.timescale)


@dataclass(eq=False, kw_only=True)
class Step:
    """Multiplied by `gamma` at each milestone.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        milestones: Where the rate changes: below 1 a share of the run, else steps.
        gamma: Factor at each milestone.
    """

    warmup: Warmup = 0.0
    milestones: tuple[Positive, ...] = (0.5, 0.75)
    gamma: Positive = 0.1

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step."""
        # A milestone that rounds to step 0, in a very short run, would take the first rate away.
        milestones = sorted(max(1, in_steps(m, total)) for m in self.milestones)
        return milestone_decay(step, milestones, self.gamma, in_steps(self.warmup, total))


@dataclass(eq=False, kw_only=True)
class Plateau:
    """Multiplied by `gamma` when a validation metric has stopped improving.

    Counts evaluations as `torch.optim.lr_scheduler.ReduceLROnPlateau` counts epochs.

    Args:
        warmup: Linear rise from near 0: below 1 a share of the run, else steps.
        metric: Metric of the validation split; `auto` is the task's main metric.
        direction: Whether more or less of it is better; `auto` knows the usual ones.
        gamma: Factor on the learning rate each time.
        patience: Evaluations without improvement that are let pass.
        threshold: What counts as an improvement: this share of the best value, or this much.
        threshold_mode: Whether `threshold` is relative to the best value or absolute.
        cooldown: Evaluations after a reduction that do not count.
        min_factor: Share of `lr` below which the rate does not fall.
    """

    warmup: Warmup = 0.0
    metric: str = "auto"
    direction: Literal["auto", "max", "min"] = "auto"
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.1
    patience: Annotated[int, Ge(0)] = 1
    threshold: Annotated[float, Ge(0)] = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: Annotated[int, Ge(0)] = 0
    min_factor: Share = 0.0
    scale: float = field(default=1.0, init=False)
    best: float | None = field(default=None, init=False)
    bad: int = field(default=0, init=False)
    cooling: int = field(default=0, init=False)

    def factor(self, step: int, total: int) -> float:
        """Return the share of `lr` at this step, given the evaluations so far."""
        return warm_up(step, in_steps(self.warmup, total)) * self.scale

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Refuse a run in which there is nothing to watch."""
        check_watched(run, self.metric, self.direction, "plateau", "`schedule.metric`")

    @hookimpl
    def sft_phase_start(self, run: Run) -> None:
        """Begin anew in a new phase; not where a run is resumed within one."""
        if run.clock.step == run.clock.phase_start:
            self.scale, self.best, self.bad, self.cooling = 1.0, None, 0, 0

    @hookimpl
    def sft_metrics(self, run: Run, view: View, values: dict[str, float]) -> None:
        """Look at the plain view of the validation split."""
        seen = watched(run, view, values, self.metric, self.direction, "`schedule.metric`")
        if seen is not None:
            self.observe(seen.value, seen.direction)

    def observe(self, value: float, direction: Literal["max", "min"]) -> None:
        """Count one evaluation and reduce the rate when it is due. NaN is no improvement."""
        if is_better(value, self.best, direction, self._margin()):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.patience:
            self.scale = max(self.scale * self.gamma, min(self.min_factor, self.scale))
            self.cooling, self.bad = self.cooldown, 0

    def _margin(self) -> float:
        """Return by how much a value must beat the best one."""
        if self.threshold_mode == "abs" or self.best is None:
            return self.threshold
        # Signed, as in torch: for a negative best value the bound is laxer, not stricter.
        return self.threshold * self.best

    def state_dict(self) -> dict[str, Any]:
        """Return what the evaluations so far have led to."""
        return {"scale": self.scale, "best": self.best, "bad": self.bad, "cooling": self.cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.scale, self.best = state["scale"], state["best"]
        self.bad, self.cooling = state["bad"], state["cooling"]
