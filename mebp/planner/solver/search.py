"""Run CP-SAT on one model: limits that make the search repeatable, and a callback that watches."""

from collections.abc import Callable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from mebp.errors import NoPlanInTime
from mebp.planner.effort import Effort

HINT_S = 2.0  # wall seconds for completing a hint, which is given whole

Watch = Callable[[float, float], bool | None]  # objective and bound; True ends the search


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A solver that found a solution, and the bound that its search proved (-inf: none)."""

    solver: cp_model.CpSolver
    bound: float


def search(model: cp_model.CpModel, effort: Effort, watch: Watch | None = None) -> Solution | None:
    """The best solution that `effort` finds; None where nothing is feasible. NoPlanInTime where nothing was found."""
    effort.require_time()
    solver = _solver(effort)
    solver.parameters.max_deterministic_time = effort.deterministic_s
    solver.parameters.max_time_in_seconds = effort.left_s
    status = effort.stop.run(solver, model, _Report(watch) if watch else None)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(solver=solver, bound=solver.best_objective_bound)
    if status == cp_model.INFEASIBLE:
        return None
    if model.proto.solution_hint.vars:
        hinted = _solver(effort)
        hinted.parameters.fix_variables_to_their_hinted_value = True
        hinted.parameters.max_time_in_seconds = HINT_S
        if hinted.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Solution(solver=hinted, bound=-float("inf"))
    raise NoPlanInTime("the solver found no plan in time: raise `time_limit` or the budget")


def _solver(effort: Effort) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = effort.seed
    solver.parameters.catch_sigint_signal = False  # Ctrl-C is left to the caller, which asks for a stop
    return solver


class _Report(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # ortools has no types here
    """Hands every better objective and the bound to the callback."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def on_solution_callback(self) -> None:
        if self._watch(self.objective_value, self.best_objective_bound):
            self.stop_search()
