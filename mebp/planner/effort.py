"""How much time a search has, what each of its phases gets of it, how to stop it, and the callback that reports progress.

Time is counted in CP-SAT's deterministic seconds, which make a search repeatable on any machine; wall seconds are a backstop.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from ortools.sat.python import cp_model

from mebp.errors import NoPlanInTime

Progress = Callable[[int, int], None]  # the best so far and the bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a phase gets: parts of the deterministic and of the wall seconds. In deterministic seconds no less than `at_least_s`,
    where the whole search has so many, and no more than `at_most_s`; a phase that is not `watched` reports no progress.
    """

    part: float = 1.0
    wall_part: float = 1.0
    at_least_s: float = 0.0
    at_most_s: float = float("inf")
    watched: bool = True


class Phase(Enum):
    """The phases of a search, each with its share; docs/solver.md follows a time limit through them."""

    ROUND = Share(part=0.5, wall_part=0.5)  # each of placement's two rounds
    START = Share(part=0.1, wall_part=0.1)  # any plan to start from, where none is known
    RETRY = Share(part=0.5, at_least_s=0.6)  # every further placement: in less room, with less flash, with waiting
    VARIANT = Share(part=0.5, at_least_s=0.6, watched=False)  # every choice of weights to unpack ahead
    CHUNKS = Share(part=0.25, at_least_s=0.3)  # every further size of chunks
    LEAST = Share(
        at_most_s=0.2, wall_part=0.1, watched=False
    )  # every search for the least plan: first without writes, then under the cap
    DESCENT = Share(at_most_s=0.1, watched=False)  # every attempt to go below the least plan
    THRIFT = Share(part=0.5, watched=False)  # every search for a plan that writes less and is about as fast
    REMEDY = Share(at_most_s=0.3, watched=False)  # every change that may help where nothing fits


@dataclass(slots=True)
class Stop:
    """Asks every search that runs now or later to end with what it has."""

    asked: bool = False
    _running: list["Search"] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self) -> None:
        """End the search."""
        with self._lock:
            self.asked = True
            for solver in self._running:
                solver.stop_search()

    @contextmanager
    def ends(self, search: "Search") -> Iterator[None]:
        """While this is entered, a stop ends `search`; one that was asked for before ends it at once."""
        with self._lock:
            self._running.append(search)
            if self.asked:
                search.stop_search()
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(search)

    def run(
        self, solver: cp_model.CpSolver, model: cp_model.CpModel, callback: cp_model.CpSolverSolutionCallback | None = None
    ) -> cp_model.CpSolverStatus:
        """Solve `model` unless a stop was asked for, and end it when one is; the status, UNKNOWN where it did not run."""
        if self.asked:
            return cp_model.UNKNOWN
        with self.ends(solver):
            return solver.solve(model, callback)


class Search(Protocol):
    """What can be ended before it is through."""

    def stop_search(self) -> None:
        """End with what there is."""


def no_limit() -> None:
    """What a search without a limit calls now and then, where one with a limit calls `Effort.require_time`."""


class StopFlag:
    """A number in memory that compiled searches look at: anything but 0 tells them to end. `address` is where it lies."""

    def __init__(self) -> None:
        self._value = ctypes.c_int32(0)

    @property
    def address(self) -> int:
        return ctypes.addressof(self._value)

    @property
    def is_up(self) -> bool:
        return bool(self._value.value)

    def stop_search(self) -> None:
        """Raise it."""
        self._value.value = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to search (deterministic seconds, and wall seconds as a backstop) and until when all searches together (by
    time.monotonic), with which seed, how to stop it, and the callback that is told of the best and the bound.
    """

    deterministic_s: float = 0.6
    wall_s: float = 20.0
    until: float = float("inf")
    seed: int = 0
    stop: Stop = field(default_factory=Stop)
    progress: Progress | None = None

    @property
    def left_s(self) -> float:
        """Wall seconds that a search that begins now may take."""
        return max(0.0, min(self.wall_s, self.until - time.monotonic()))

    @property
    def over(self) -> bool:
        """Whether there is no time for another search, or a stop was asked for."""
        return self.stop.asked or self.left_s <= 0

    def require_time(self) -> None:
        """NoPlanInTime where the time of all searches together is over."""
        if self.over:
            raise NoPlanInTime("the time was over before a plan was found: raise `time_limit`")

    def of(self, phase: Phase) -> "Effort":
        """What `phase` gets of it."""
        share: Share = phase.value
        least_s = min(self.deterministic_s, share.at_least_s)
        return replace(
            self,
            deterministic_s=min(share.at_most_s, max(least_s, share.part * self.deterministic_s)),
            wall_s=share.wall_part * self.wall_s,
            progress=self.progress if share.watched else None,
        )

    @contextmanager
    def flag(self) -> Iterator[StopFlag]:
        """A flag that goes up when the wall seconds are over, and when a stop is asked for."""
        flag = StopFlag()
        timer = threading.Timer(self.left_s, flag.stop_search)
        timer.daemon = True
        timer.start()
        try:
            with self.stop.ends(flag):
                yield flag
        finally:
            timer.cancel()
