"""Timetables by hand."""

from __future__ import annotations

import math

import pytest

from sft_engine.flow import Phase
from sft_freezing import stages
from sft_freezing.spans import span_of
from sft_freezing.stages import Stage, settled, stage_at, thawed_at


def table(found):
    """Return {first step: sorted layer groups}."""
    return {stage.start: sorted(stage.groups) for stage in found}


def test_gradual_unfreezing_of_ulmfit():
    """One more after each epoch of ten steps, from the head (3) down."""
    found = stages.gradual(4, 1, 1, lambda number: 10 * number)
    assert table(found) == {0: [3], 10: [2, 3], 20: [1, 2, 3], 30: [0, 1, 2, 3]}


def test_gradual_unfreezing_of_several_at_once():
    found = stages.gradual(6, 1, 2, lambda number: 10 * number)
    assert table(found) == {0: [5], 10: [3, 4, 5], 20: [1, 2, 3, 4, 5], 30: [0, 1, 2, 3, 4, 5]}


def test_a_model_that_trains_whole_from_the_start_has_one_stage():
    assert stages.gradual(4, 4, 1, lambda _: 7) == [Stage(0, frozenset(range(4)))]
    assert stages.thaws(4, 9, 1) == 0


def test_head_first():
    assert table(stages.head_first(4, 1, 25)) == {0: [3], 25: [0, 1, 2, 3]}
    assert table(stages.head_first(4, 2, 25)) == {0: [2, 3], 25: [0, 1, 2, 3]}


def test_chain_thaw_of_deepmoji():
    """The head, each alone from the input on, all: one stage more than layer groups."""
    found = stages.chain(4, lambda number: 5 * number)
    assert table(found) == {0: [3], 5: [0], 10: [1], 15: [2], 20: [0, 1, 2, 3]}


def test_progressive_freezing():
    found = stages.progressive(4, [10, 20, 30])
    assert table(found) == {0: [0, 1, 2, 3], 10: [1, 2, 3], 20: [2, 3], 30: [3]}
    assert table(stages.progressive(4, [10])) == {0: [0, 1, 2, 3], 10: [1, 2, 3]}


def test_shares_of_freeze_out():
    """t_0 = 0.5 and five layers: 0.5, 0.625, 0.75, 0.875, 1; cubed, 0.125 to 1."""
    linear = [stages.freezing_share(group, 5, 0.5, cubic=False) for group in range(5)]
    assert linear == [0.5, 0.625, 0.75, 0.875, 1.0]
    cubic = [stages.freezing_share(group, 5, 0.5, cubic=True) for group in range(5)]
    assert cubic == [share**3 for share in linear]


def test_annealing_of_freeze_out():
    """lr(t) = 0.5 (1 + cos(pi t / t_i)): whole, half at half the way, nothing."""
    assert stages.annealed(0, 8) == 1.0
    assert stages.annealed(4, 8) == pytest.approx(0.5)
    assert stages.annealed(2, 8) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert stages.annealed(8, 8) == pytest.approx(0.0)
    assert stages.annealed(0, 0) == 0.0


@pytest.mark.parametrize(
    ("groups", "first", "middle", "last"),
    [
        (7, [0, 1], [2, 3], [4, 5]),
        (6, [0, 1], [2], [3, 4]),
        (5, [0, 1], [], [2, 3]),
        (4, [0], [1], [2]),
        (2, [0], [], [0]),
    ],
)
def test_thirds_leave_the_head_out(groups, first, middle, last):
    found = [sorted(stages.third(which, groups)) for which in ("first", "middle", "last")]
    assert found == [first, middle, last]


# --- positions in a timetable ----------------------------------------------------------------------


def test_of_stages_that_begin_together_the_later_holds():
    found = settled([Stage(0, frozenset({1})), Stage(0, frozenset({2})), Stage(5, frozenset({3}))])
    assert table(found) == {0: [2], 5: [3]}
    assert [sorted(stage_at(found, step).groups) for step in (0, 4, 5, 99)] == [[2], [2], [3], [3]]


def test_since_when_a_group_trains():
    """Group 0 of a chain trains alone in 5 … 9, then with all from 20 on."""
    found = stages.chain(4, lambda number: 5 * number)
    assert thawed_at(found, 0, 7) == 5
    assert thawed_at(found, 0, 23) == 20
    assert thawed_at(found, 3, 4) == 0
    assert thawed_at(found, 2, 23) == 15  # without a break since its own stage


def test_warming_up_again():
    assert [stages.warmth(done, 4) for done in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert stages.warmth(0, 0) == 1.0
    assert stages.warmth(0, 1) == 1.0


def test_who_never_trains():
    found = stages.gradual(4, 1, 1, lambda number: 10 * number)
    assert stages.never_trained(found, 4, 20) == [0, 1]
    assert stages.never_trained(found, 4, 21) == [0]
    assert stages.never_trained(found, 4, 31) == []


# --- the part of a run -----------------------------------------------------------------------------

PHASES = (
    Phase("a", {"data": 1.0}, steps=10, steps_per_epoch=4, start=0),
    Phase("b", {"data": 1.0}, steps=6, steps_per_epoch=3, start=10, first_epoch=3),
    Phase("c", {"data": 1.0}, steps=8, steps_per_epoch=4, start=16, first_epoch=5),
)


def test_a_span_is_the_whole_run_by_default():
    span = span_of(PHASES, ())
    assert span.steps == 24
    assert [span.position(step) for step in (0, 9, 10, 23)] == [0, 9, 10, 23]
    assert span.position(24) is None


def test_a_span_leaves_out_what_lies_between():
    span = span_of(PHASES, ["a", "c"])
    assert span.steps == 18
    found = [span.position(step) for step in (0, 9, 10, 15, 16, 23, 24)]
    assert found == [0, 9, None, None, 10, 17, None]


def test_epochs_end_with_their_phase():
    """Phase a has epochs of 4, 4 and 2 steps, b two of 3, c two of 4."""
    span = span_of(PHASES, ())
    assert [span.after_epochs(n) for n in range(9)] == [0, 4, 8, 10, 13, 16, 20, 24, 24]
    assert span.after_epochs(0.5) == 2
    assert span.after_epochs(3.4) == 11
    assert span_of(PHASES, ["b"]).after_epochs(1) == 3


def test_shares_are_of_the_steps():
    assert [span_of(PHASES, ()).after_share(share) for share in (0, 0.25, 1)] == [0, 6, 24]
