"""Functions that take turns: one at a time, with generators of their own, and meetings of all that go on."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from sft_engine.replay.turns import Turns


def draws():
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def results(seats):
    return [seat.result for seat in seats]


def test_each_goes_on_in_turn_with_what_came_of_the_meeting():
    turns, log, threads = Turns(), [], threading.active_count()

    def add(seats):
        log.append("met")
        for seat in seats:
            seat.back = sum(each.given for each in seats) - seat.given

    def work(name, rounds):
        found = []
        for i in range(rounds):
            log.append(f"{name}{i}")
            found.append(turns.meet(rounds * 10 + i, add))
        return found

    seats = turns.run([lambda: work("a", 2), lambda: work("b", 1), lambda: work("c", 2)])
    # The one that has ended is not waited for.
    assert log == ["a0", "b0", "c0", "met", "a1", "c1", "met"]
    assert results(seats) == [[30, 21], [40], [30, 21]]
    assert threading.active_count() == threads


def test_each_draws_as_if_it_were_alone():
    turns = Turns()

    def work(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(seed)
        found = []
        for _ in range(3):
            found += draws()
            turns.meet(None, lambda seats: torch.rand(len(seats)))
            assert torch.get_num_threads() == seed
        return found

    before = torch.get_num_threads(), random.getstate(), torch.get_rng_state()
    together = results(turns.run([lambda: work(1), lambda: work(2)]))
    after = torch.get_num_threads(), random.getstate(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert together == [results(turns.run([lambda s=s: work(s)]))[0] for s in (1, 2)]


def test_one_that_fails_is_its_own_affair():
    turns = Turns()

    def count(seats):
        for seat in seats:
            seat.back = len(seats)

    def work(fails):
        found = [turns.meet(None, count)]
        if fails:
            raise KeyError("mine")
        return [*found, turns.meet(None, count)]

    one, other, third = turns.run([lambda f=f: work(f) for f in (False, True, False)])
    assert (one.result, third.result) == ([3, 2], [3, 2])
    assert isinstance(other.error, KeyError)
    assert one.error is None


def test_a_meeting_that_fails_fails_for_all_of_it():
    turns = Turns()

    def refuse(_):
        raise ValueError("no room")

    def work():
        with pytest.raises(ValueError, match="no room"):
            turns.meet(None, refuse)
        return turns.meet(7, lambda seats: None)

    assert results(turns.run([work, work])) == [None, None]


def test_who_comes_to_another_meeting_does_not_disturb_this_one():
    turns = Turns()

    def name(text):
        def act(seats):
            for seat in seats:
                seat.back = text, len(seats)

        return act

    this, that = name("this"), name("that")
    seats = turns.run(
        [lambda: turns.meet(0, this), lambda: turns.meet(0, that), lambda: turns.meet(0, this)]
    )
    assert results(seats) == [("this", 2), ("that", 1), ("this", 2)]
