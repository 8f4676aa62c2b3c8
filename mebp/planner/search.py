"""Run CP-SAT: limits that make a search repeatable, a callback for who watches, and a way to stop it from another thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ortools.sat.python import cp_model

from mebp.errors import NoPlanInTime

SMALL_S = 0.6  # deterministic seconds within which small problems are solved
HINT_S = 2.0  # wall seconds for completing a hint, which is given whole

Result = TypeVar("Result")
Watch = Callable[[float, float], bool | None]  # objective and bound; True ends the search
Progress = Callable[[int, int], None]  # the best so far and the bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long the solver may search: deterministic seconds (repeatable), wall seconds as a backstop."""

    deterministic_s: float = 0.6
    wall_s: float = 20.0
    seed: int = 0

    def part(self, share: float) -> "Limits":
        """A share of the time, but no less than small problems need."""
        deterministic_s = max(share * self.deterministic_s, min(self.deterministic_s, SMALL_S))
        return replace(self, deterministic_s=deterministic_s)


@dataclass(slots=True)
class Stop:
    """Asks every search that runs now or later to end with what it has."""

    asked: bool = False
    _running: list[cp_model.CpSolver] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self) -> None:
        """End the search."""
        with self._lock:
            self.asked = True
            for solver in self._running:
                solver.stop_search()

    def start(self, solver: cp_model.CpSolver) -> bool:
        """Register a search that is about to run; False where it should not."""
        with self._lock:
            self._running.append(solver)
            return not self.asked

    def end(self, solver: cp_model.CpSolver) -> None:
        """Forget a search that ended."""
        with self._lock:
            self._running.remove(solver)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to search, who may stop it, and who is told of what it finds."""

    limits: Limits = Limits()
    stop: Stop = field(default_factory=Stop)
    progress: Progress | None = None

    def part(self, share: float) -> "Effort":
        """A share of the time (see Limits.part)."""
        return replace(self, limits=self.limits.part(share))

    def quick(self, deterministic_s: float) -> "Effort":
        """No more than so many deterministic seconds, and nobody told."""
        limits = replace(self.limits, deterministic_s=min(self.limits.deterministic_s, deterministic_s))
        return replace(self, limits=limits, progress=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A solver that holds a solution, and the bound that its search proved (-inf: none)."""

    solver: cp_model.CpSolver
    bound: float


def search(model: cp_model.CpModel, effort: Effort, watch: Watch | None = None, share: float = 1.0) -> Answer | None:
    """The best solution within `share` of the limits; None where nothing is feasible. NoPlanInTime where nothing was found."""
    limits, stop = effort.limits, effort.stop
    solver = _solver(limits)
    solver.parameters.max_deterministic_time = limits.deterministic_s * share
    solver.parameters.max_time_in_seconds = limits.wall_s * share
    status = cp_model.UNKNOWN
    if stop.start(solver):
        status = solver.solve(model, _Report(watch) if watch else None)
    stop.end(solver)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer(solver=solver, bound=solver.best_objective_bound)
    if status == cp_model.INFEASIBLE:
        return None
    if not model.proto.solution_hint.vars:
        raise NoPlanInTime(f"the solver found no plan in {limits.wall_s:g} s: raise --time-limit or the budget")
    hinted = _solver(limits)
    hinted.parameters.fix_variables_to_their_hinted_value = True
    hinted.parameters.max_time_in_seconds = HINT_S
    if hinted.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer(solver=hinted, bound=-float("inf"))
    raise NoPlanInTime(f"the solver found no plan in {limits.wall_s:g} s: raise --time-limit or the budget")


def _solver(limits: Limits) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = limits.seed
    solver.parameters.catch_sigint_signal = False  # Ctrl-C is the caller's, who asks for a stop
    return solver


class _Report(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # ortools has no types here
    """Hands every better objective and the bound to whoever watches."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def on_solution_callback(self) -> None:
        if self._watch(self.objective_value, self.best_objective_bound):
            self.stop_search()


def interruptible(work: Callable[[], Result], stop: Stop) -> Result:
    """Do `work` beside this thread; Ctrl-C asks it to stop and takes what it has, a second one ends it."""
    future: Future[Result] = Future()
    try:
        return beside(work, future).result()
    except KeyboardInterrupt:
        if not future.running() and not future.done():
            raise  # it came before the work began
        stop.ask()
        return future.result()


def beside(work: Callable[[], Result], future: "Future[Result] | None" = None) -> "Future[Result]":
    """Start `work` in a thread of its own: the solver leaves Python alone for most of its time. Ctrl-C does not wait for it."""
    future = Future() if future is None else future

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="mebp-solve", daemon=True).start()
    return future
