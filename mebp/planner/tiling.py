"""The chunks of the sequence as a decision: a step posed whole, and in chunks of a few sizes, and solved as what is best.

Chunks take less memory, since what a layer makes on the way never spans the sequence, and more time, since each streams the weights
once more. All layers run in chunks of one size. A size whose bound is above a plan that is known is not searched, nor one whose
least room is above what there is.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.effort import Effort
from mebp.planner.solver.problem import LONGEST_STEP_NS, Problem, pose
from mebp.planner.solver.solve import least_plan, solve, write_less
from mebp.sim.device import Device
from mebp.sim.footprint import arena_budget, outside_arena

CHUNKS = (2048, 1024, 512, 256)  # tokens
FEW_TOKENS = 1024  # up to so many, a step that runs whole may need less memory than one in chunks


@dataclass(frozen=True, kw_only=True)
class Tilings:
    """One step, posed whole first and then in smaller and smaller chunks."""

    problems: tuple[Problem, ...]

    @property
    def graph(self) -> Graph:
        """The step as it was asked for."""
        return self.problems[0].graph

    @property
    def device(self) -> Device:
        return self.problems[0].device

    def of(self, plan: Plan) -> Problem:
        """The problem that a plan solves."""
        return next(problem for problem in self.problems if problem.graph.workload == plan.workload)

    def footprint(self, plan: Plan) -> int:
        """Bytes of a plan's arena and of what lies outside it."""
        return plan.arena_bytes + outside_arena(self.of(plan).graph, self.device)

    def best_step_ns(self, budget_bytes: int) -> int:
        """No plan is faster under this budget, whatever its chunks, order and recomputation; LONGEST_STEP_NS where none fits."""
        return min(self._bounds_ns(budget_bytes).values(), default=LONGEST_STEP_NS)

    def least(self, budget_bytes: int, effort: Effort) -> Plan:
        """The plan of least memory that is found, NoPlanInTime where none is."""
        smallest = self.problems[-1]
        few = len(self.problems) > 1 and self.graph.workload.tokens <= FEW_TOKENS
        found = [least_plan(smallest, budget_bytes, effort)]
        if few:
            with suppress(NoPlanInTime):
                found.append(least_plan(self.problems[0], budget_bytes, effort))
        return min(found, key=self.footprint)

    def solve(self, budget_bytes: int, effort: Effort, least: Plan | None = None) -> Plan:
        """The fastest plan that is found under `budget_bytes` of footprint, with bounds on every way to run the step;
        InfeasibleBudget where none is. `least` is one of few bytes to fall back on.
        """
        bounds = self._bounds_ns(budget_bytes)
        found: dict[int, Plan] = {}
        late: NoPlanInTime | None = None
        for number in sorted(bounds, key=lambda number: (bounds[number], number)):
            if found and (bounds[number] >= _fastest(found.values()) or effort.over):
                continue
            problem = self.problems[number]
            own = least if least is not None and self.of(least) is problem else None
            try:
                found[number] = solve(problem, budget_bytes, effort, own)
            except InfeasibleBudget:
                continue
            except NoPlanInTime as error:
                late = error
        if not found:
            self._refuse(budget_bytes, effort, least, late)
        best = min(found.values(), key=_step_ns)
        proven = [found[number].solver.bound_ns if number in found else bound for number, bound in bounds.items()]  # type: ignore[union-attr]
        return _bounded(best, min(proven), min(bounds.values()))

    def write_less(self, fastest: Plan, effort: Effort) -> Plan:
        """A plan about as fast that writes less, in the same chunks; the given one where none is found."""
        return write_less(self.of(fastest), fastest, effort)

    def _refuse(self, budget_bytes: int, effort: Effort, least: Plan | None, late: NoPlanInTime | None) -> None:
        if late is not None:
            raise late
        least = least or self.least(budget_bytes, effort)
        nbytes = self.footprint(least)
        raise InfeasibleBudget(f"no plan found within {budget_bytes} bytes: one of {nbytes} exists", budget_bytes, nbytes)

    def _bounds_ns(self, budget_bytes: int) -> dict[int, int]:
        """Lower bounds on the step of each problem, by number, where any plan of it may fit."""
        found: dict[int, int] = {}
        for number, problem in enumerate(self.problems):
            room = arena_budget(problem.graph, self.device, budget_bytes)
            if self._floors[number] <= room:
                found[number] = problem.whole_bound_ns(room)
        return found

    @cached_property
    def _floors(self) -> tuple[int, ...]:
        return tuple(problem.graph.largest_op_bytes for problem in self.problems)


def tilings(graph: Graph, device: Device, effort: Effort | None = None) -> Tilings:
    """Pose a step whole and in chunks; as it is where it says itself in which. NoPlanInTime where the time of `effort` is over."""
    workload = graph.workload
    sizes = [] if workload.chunk else [chunk for chunk in CHUNKS if chunk < workload.tokens]
    graphs = (graph, *(build_graph(graph.config, replace(workload, chunk=chunk)) for chunk in sizes))
    return Tilings(problems=tuple(pose(one, device, effort) for one in graphs))


def _step_ns(plan: Plan) -> int:
    assert plan.solver is not None
    return plan.solver.objective_ns


def _fastest(plans: Iterable[Plan]) -> int:
    return min(map(_step_ns, plans))


def _bounded(plan: Plan, bound_ns: int, whole_ns: int) -> Plan:
    """A plan with bounds over all chunks."""
    facts = plan.solver
    assert facts is not None
    assert whole_ns <= facts.objective_ns, "a bound above a plan's time is a bug"
    bound_ns = min(max(bound_ns, whole_ns), facts.objective_ns)
    gap = 1 - bound_ns / facts.objective_ns
    status = "optimal" if not gap else "feasible"
    return replace(plan, solver=replace(facts, status=status, bound_ns=bound_ns, whole_bound_ns=whole_ns, gap=gap))  # type: ignore[arg-type]
