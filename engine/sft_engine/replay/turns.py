"""Functions that take turns: each in a thread of its own, one at a time, until all have met.

A training run that can be halted in the middle of a step, and go on from there, can share that step with
others. Threads serve as coroutines here: exactly one runs, the others wait for their turn, and what is
global to the process (random generators, the number of torch's threads) is each one's own.
"""

from __future__ import annotations

import contextvars
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, get_num_threads, get_rng_state, set_num_threads, set_rng_state


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
        given: What it brought to the meeting.
        back: What it takes away from it.
        result: What it returned.
        error: What it raised.
        turn: Set when it is its turn.
        state: `ready`, `running`, `met` or `ended`.
    """

    generators: Generators
    given: Any = None
    back: Any = None
    result: Any = None
    error: BaseException | None = None
    turn: threading.Event = field(default_factory=threading.Event)
    state: str = "ready"


Act = Callable[[Sequence[Seat]], None]
"""Reads what the seats have given and sets what each gets back."""


class Turns:
    """Runs functions in turns.

    A function goes on until it meets the others or ends. When all that have not ended have come to a meeting,
    one acts for all, and they go on in turn, in their order.
    """

    def __init__(self) -> None:
        self._seats: list[Seat] = []
        self._own = threading.local()
        self._over = threading.Event()

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Seat]:
        """Run the functions; return how each ended, in their order.

        Generators of the caller are as before; each function begins with them as they are now.
        """
        before = Generators()
        self._seats = [Seat(Generators()) for _ in functions]
        self._over.clear()
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(self._sit, seat, function), daemon=True
            )
            for seat, function in zip(self._seats, functions, strict=True)
        ]
        for thread in threads:
            thread.start()
        self._pass_on()
        self._over.wait()
        for thread in threads:
            thread.join()
        before.put_back()
        return self._seats

    def meet(self, given: Any, act: Act) -> Any:
        """Wait for all others; return what came of it.

        Args:
            given: What this one brings.
            act: What is done as soon as all are there, once for all who bring the same.

        Raises:
            BaseException: what `act` raised, in every seat.
        """
        seat: Seat = self._own.seat
        seat.given, seat.generators, seat.state = (given, act), Generators(), "met"
        self._pass_on()
        self._await(seat)
        back, seat.back, seat.given = seat.back, None, None
        if isinstance(back, BaseException):
            raise back
        return back

    def _sit(self, seat: Seat, function: Callable[[], Any]) -> None:
        self._own.seat = seat
        self._await(seat)
        try:
            seat.result = function()
        except BaseException as error:  # noqa: BLE001  given to whoever asked for it
            seat.error = error
        finally:
            seat.state = "ended"
            self._pass_on()

    @staticmethod
    def _await(seat: Seat) -> None:
        seat.turn.wait()
        seat.turn.clear()
        seat.generators.put_back()

    def _pass_on(self) -> None:
        """Give the turn to the next one; hold the meeting if all have come."""
        ready = self._in("ready")
        met = self._in("met")
        if not ready and met:
            self._hold(met)
            ready = met
        if ready:
            ready[0].state = "running"
            ready[0].turn.set()
        else:
            self._over.set()

    def _in(self, state: str) -> list[Seat]:
        return [seat for seat in self._seats if seat.state == state]

    @staticmethod
    def _hold(met: list[Seat]) -> None:
        """Act for all that have come; those that failed on the way to one meeting may come to another."""
        acts: list[Act] = []
        for seat in met:
            if seat.given[1] not in acts:
                acts.append(seat.given[1])
        for act in acts:
            own = [seat for seat in met if seat.given[1] == act]
            for seat in own:
                seat.given = seat.given[0]
            met = [seat for seat in met if seat not in own]
            try:
                act(own)
            except BaseException as error:  # noqa: BLE001  raised where each of them waits
                for seat in own:
                    seat.back = error
            for seat in own:
                seat.state = "ready"
