"""Engines as threads: each works through its own instructions in plan order; before one starts, it waits until those that must
have ended on other engines have (mebp/order.py).

The compute engine is the calling thread; unpack, store and load have a thread each where the plan uses them.
"""

import threading
import time
from collections.abc import Callable

from mebp.errors import MebpError
from mebp.order import predecessors
from mebp.plan import Engine, Instruction, Plan


def cross_engine_waits(plan: Plan) -> list[tuple[int, ...]]:
    """For each instruction the predecessors on other engines, the last one of each engine only."""
    waits: list[tuple[int, ...]] = []
    for instruction, before in zip(plan.instructions, predecessors(plan), strict=True):
        last: dict[Engine, int] = {}
        for index in before:
            engine = plan.instructions[index].engine
            if engine is not instruction.engine:
                last[engine] = max(index, last.get(engine, -1))
        waits.append(tuple(last.values()))
    return waits


class Engines:
    """One run through a plan: a thread per engine, each told how far the others are."""

    def __init__(self, plan: Plan, waits: list[tuple[int, ...]], run: Callable[[int, Instruction], None]) -> None:
        self._instructions = plan.instructions
        self._waits = waits
        self._run_one = run
        self._engine_of = [instruction.engine for instruction in plan.instructions]
        self._ended = dict.fromkeys(Engine, -1)
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._spans = [(0, 0)] * len(plan.instructions)

    def run(self, begin_ns: int) -> list[tuple[int, int]]:
        """Run all instructions; returns (start, end) of each in ns from `begin_ns`, (0, 0) for frees."""
        others = [e for e in (Engine.UNPACK, Engine.STORE, Engine.LOAD) if e in self._engine_of]
        threads = [
            threading.Thread(target=self._work, args=(engine, begin_ns), name=f"mebp-{engine}", daemon=True) for engine in others
        ]
        started: list[threading.Thread] = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            self._work(Engine.COMPUTE, begin_ns)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for thread in started:
                thread.join()
        if self._failure is not None:
            raise self._failure
        return self._spans

    def _work(self, engine: Engine, begin_ns: int) -> None:
        try:
            for index, instruction in enumerate(self._instructions):
                if self._engine_of[index] is engine:
                    self._await(self._waits[index])
                    start = time.perf_counter_ns()
                    self._run_one(index, instruction)
                    self._spans[index] = (start - begin_ns, time.perf_counter_ns() - begin_ns)
                    self._report(engine, index)
        except BaseException as error:
            self._fail(error)

    def _await(self, before: tuple[int, ...]) -> None:
        if not before:
            return
        with self._changed:
            while any(self._ended[self._engine_of[index]] < index for index in before):
                if self._failure is not None:
                    raise _Stopped
                self._changed.wait()

    def _report(self, engine: Engine, index: int) -> None:
        with self._changed:
            self._ended[engine] = index
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None or isinstance(self._failure, _Stopped):
                self._failure = error
            self._changed.notify_all()


class _Stopped(MebpError):
    """Another engine failed; this one stops too."""
