"""Timetables of freezing: which layer groups train from which step on, as functions of numbers alone.

A timetable is a list of stages in the order of time. Steps count within the span of the schedule; layer
groups are numbered from the input (0) to the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What trains until the next stage begins.

    Args:
        start: Its first step.
        groups: Indices of the layer groups that train.
    """

    start: int
    groups: frozenset[int]


Stages = Sequence[Stage]


def settled(stages: Stages) -> list[Stage]:
    """Return the stages that last: of those that begin together, the later one."""
    return list({stage.start: stage for stage in stages}.values())


def stage_at(stages: Stages, position: int) -> Stage:
    """Return the stage that holds at a step; the stages are settled."""
    return [stage for stage in stages if stage.start <= position][-1]


def thawed_at(stages: Stages, group: int, position: int) -> int:
    """Return the step from which a group that trains at a step has trained without a break."""
    since = position
    for stage in reversed([stage for stage in stages if stage.start <= position]):
        if group not in stage.groups:
            break
        since = stage.start
    return since


def warmth(done: int, steps: int) -> float:
    """Return the share of the learning rate of a group that has trained for some steps since it thawed.

    Linear: `1 / steps` in its first step, 1 from step number `steps` on.
    """
    return min(1.0, (done + 1) / steps) if steps else 1.0


def never_trained(stages: Stages, groups: int, steps: int) -> list[int]:
    """Return the layer groups that train in no step of a span; the stages are settled."""
    return sorted(set(range(groups)).difference(*[s.groups for s in stages if s.start < steps]))


# --- schedules ------------------------------------------------------------------------------------


def gradual(groups: int, first: int, at_once: int, thaw: Callable[[int], int]) -> list[Stage]:
    """From the head down, more and more layer groups train.

    Howard, Ruder 2018 (ULMFiT), section 3.3: one more after each epoch.

    Args:
        groups: Number of layer groups.
        first: How many train from the start.
        at_once: How many thaw together.
        thaw: Step of a thaw; its argument counts them from 1.
    """
    later = [
        Stage(thaw(number), _top(groups, first + number * at_once))
        for number in range(1, thaws(groups, first, at_once) + 1)
    ]
    return [Stage(0, _top(groups, first)), *later]


def thaws(groups: int, first: int, at_once: int) -> int:
    """Return in how many thaws gradual unfreezing is done."""
    return max(0, math.ceil((groups - first) / at_once))


def head_first(groups: int, top: int, until: int) -> list[Stage]:
    """Only the top layer groups train, then all.

    Kumar et al. 2022 (LP-FT), section 3.4.

    Args:
        groups: Number of layer groups.
        top: How many train first.
        until: Step at which all do.
    """
    return [Stage(0, _top(groups, top)), Stage(until, _top(groups, groups))]


def chain(groups: int, begin: Callable[[int], int]) -> list[Stage]:
    """The head alone, then every other layer group alone from the input on, then all together.

    Felbo et al. 2017 (DeepMoji), section 3.3.

    Args:
        groups: Number of layer groups; there is one stage more.
        begin: Step at which a stage begins; its argument counts them from 0.
    """
    order = [groups - 1, *range(groups - 1)]
    alone = [Stage(begin(number), frozenset({group})) for number, group in enumerate(order)]
    return [*alone, Stage(begin(groups), _top(groups, groups))]


def progressive(groups: int, ends: Sequence[int]) -> list[Stage]:
    """From the input on, fewer and fewer layer groups train.

    Brock et al. 2017 (FreezeOut), section 2.

    Args:
        groups: Number of layer groups.
        ends: Step at which each is frozen, input first; those that it has no step for never are.
    """
    fewer = [Stage(end, _top(groups, groups - number)) for number, end in enumerate(ends, 1)]
    return [Stage(0, _top(groups, groups)), *fewer]


def freezing_share(group: int, groups: int, first: float, *, cubic: bool) -> float:
    """Return the share of the run after which FreezeOut freezes a layer group.

    Linear from `first` for the group at the input to 1 for the head; cubed, early groups freeze
    earlier still.
    """
    share = first + (1 - first) * group / max(groups - 1, 1)
    return float(share**3) if cubic else share


def annealed(position: int, until: int) -> float:
    """Return half a cosine from 1 to 0: the learning rate of what freezes at step `until`."""
    return 0.5 * (1 + math.cos(math.pi * min(position / until, 1.0))) if until else 0.0


def third(which: str, groups: int) -> frozenset[int]:
    """Return the first, middle or last third of all layer groups but the head.

    Lee et al. 2022 (surgical fine-tuning): first for shifts of the input, middle for shifts of
    features, last for shifts of the output. Where thirds are uneven, the outer ones are the larger.

    Args:
        which: `first`, `middle` or `last`.
        groups: Number of layer groups, the head included.
    """
    body = groups - 1
    size = math.ceil(body / 3)
    bounds = {"first": (0, size), "middle": (size, body - size), "last": (body - size, body)}
    return frozenset(range(*bounds[which]))


def _top(groups: int, number: int) -> frozenset[int]:
    return frozenset(range(max(0, groups - number), groups))
