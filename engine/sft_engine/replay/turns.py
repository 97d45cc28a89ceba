"""Functions that take turns: one at a time, until all have met.

A training run that can be halted in the middle of a step, and go on from there, can share that step with
others. They are greenlets, all in one thread of the system: threads would each have a pool of workers for
matrix products, which wait busily for their next turn. What is global to the process (random generators, the
number of torch's threads) is each one's own.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, get_num_threads, get_rng_state, set_num_threads, set_rng_state

if TYPE_CHECKING:
    from greenlet import greenlet


@dataclass
class Generators:
    """What the process has but once: the global random generators, and torch's threads."""

    python: Any = field(default_factory=random.getstate)
    numpy: Any = field(default_factory=np.random.get_state)
    torch: Tensor = field(default_factory=get_rng_state)
    threads: int = field(default_factory=get_num_threads)

    def put_back(self) -> None:
        """Make them those of the process again."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 (components may draw from it)
        set_rng_state(self.torch)
        if get_num_threads() != self.threads:
            set_num_threads(self.threads)


@dataclass(eq=False)
class Seat:
    """One of the functions, and how it stands.

    Args:
        generators: Its own, while another one runs.
        given: What it brought to the meeting, and what is done there.
        back: What it takes away from it.
        result: What it returned.
        error: What it raised.
        ended: Whether it has.
    """

    generators: Generators
    given: Any = None
    back: Any = None
    result: Any = None
    error: BaseException | None = None
    ended: bool = False


Act = Callable[[Sequence[Seat]], None]
"""Reads what the seats have given and sets what each gets back."""


class Turns:
    """Runs functions in turns.

    A function goes on until it meets the others or ends. When all that have not ended have come to a meeting,
    one acts for all, and they go on in turn, in their order.
    """

    def __init__(self) -> None:
        self._seat: Seat | None = None
        self._hub: greenlet | None = None

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Seat]:
        """Run the functions; return how each ended, in their order.

        Generators of the caller are as before; each function begins with them as they are now.
        """
        from greenlet import getcurrent, greenlet

        before = Generators()
        self._hub = getcurrent()
        seats = [Seat(Generators()) for _ in functions]
        turns = [
            greenlet(partial(_sit, seat, function))
            for seat, function in zip(seats, functions, strict=True)
        ]
        for turn in turns:
            turn.gr_context = contextvars.copy_context()
        while not all(seat.ended for seat in seats):
            for seat, turn in zip(seats, turns, strict=True):
                if not seat.ended:
                    seat.generators.put_back()
                    self._seat = seat
                    turn.switch()
            _hold([seat for seat in seats if not seat.ended])
        before.put_back()
        return seats

    def meet(self, given: Any, act: Act) -> Any:
        """Wait for all others; return what came of it.

        Args:
            given: What this one brings.
            act: What is done as soon as all are there, once for all who bring the same.

        Raises:
            BaseException: what `act` raised, in every seat.
        """
        assert self._hub is not None
        assert self._seat is not None
        seat = self._seat
        seat.given, seat.generators = (given, act), Generators()
        self._hub.switch()
        back, seat.back, seat.given = seat.back, None, None
        if isinstance(back, BaseException):
            raise back
        return back


def _sit(seat: Seat, function: Callable[[], Any]) -> None:
    try:
        seat.result = function()
    except BaseException as error:  # noqa: BLE001  given to whoever asked for it
        seat.error = error
    finally:
        seat.ended = True


def _hold(met: list[Seat]) -> None:
    """Act for all that have come; those that failed on the way to one meeting may come to another."""
    while met:
        act: Act = met[0].given[1]
        own = [seat for seat in met if seat.given[1] == act]
        met = [seat for seat in met if seat not in own]
        for seat in own:
            seat.given = seat.given[0]
        try:
            act(own)
        except BaseException as error:  # noqa: BLE001  raised where each of them waits
            for seat in own:
                seat.back = error
