"""The chunks of the sequence as a decision: a step posed whole, and in chunks of a few sizes, and solved as what is best.

Chunks take less memory, since what a layer makes on the way never spans the sequence, and more time, since each streams the weights
once more that are not unpacked for all of them. Where attention runs whole, what it reads and makes spans the sequence, and may be
saved. All layers run in one way. A way whose bound is above a plan that is known is not searched, nor one whose largest op needs
more room than there is.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.effort import Effort, Phase
from mebp.planner.solver.problem import LONGEST_STEP_NS, Problem, pose
from mebp.planner.solver.solve import least_plan, solve, write_less
from mebp.sim.device import Device
from mebp.sim.footprint import arena_budget, outside_arena
from mebp.sim.uncertainty import peak_margin

WAYS = ((1024, True), (1024, False), (512, False), (256, False))  # tokens of a chunk, and whether attention runs whole
FEW_TOKENS = 1024  # up to so many, a step that runs whole may need less memory than one in chunks


class Tilings:
    """One step whole, which is how it was asked for, and in smaller and smaller chunks; each is posed when it is first needed."""

    def __init__(self, graphs: Sequence[Graph], device: Device, effort: Effort | None) -> None:
        self.graphs = graphs
        self.device = device
        self._effort = effort
        self._problems: dict[int, Problem] = {}

    @property
    def graph(self) -> Graph:
        """The step as it was asked for."""
        return self.graphs[0]

    def graph_of(self, plan: Plan) -> Graph:
        """The graph that a plan is for."""
        return self.graphs[self._number(plan)]

    def footprint(self, plan: Plan) -> int:
        """Bytes of a plan's arena and of what lies outside it."""
        return plan.arena_bytes + outside_arena(self.graph_of(plan), self.device)

    def best_step_ns(self, budget_bytes: int) -> int:
        """No plan is faster under this budget, whatever its chunks, order and recomputation; LONGEST_STEP_NS where none fits."""
        rooms = self._rooms(dict.fromkeys(range(len(self.graphs)), budget_bytes))
        return min((self._problem(number).whole_bound_ns(room) for number, room in rooms.items()), default=LONGEST_STEP_NS)

    def least(self, budget_bytes: int, effort: Effort) -> Plan:
        """The plan of least memory that is found, NoPlanInTime where none is."""
        smallest = len(self.graphs) - 1
        found = [least_plan(self._problem(smallest), budget_bytes, effort)]
        if smallest and self.graph.workload.tokens <= FEW_TOKENS:
            with suppress(NoPlanInTime):
                found.append(least_plan(self._problem(0), budget_bytes, effort))
        return min(found, key=self.footprint)

    def solve(self, budget_bytes: int, effort: Effort, least: Plan | None = None, *, surely: bool = False) -> Plan:
        """The fastest plan that is found under `budget_bytes` of footprint, or `surely` less the margin by which predictions may be
        too low, with bounds on every way to run the step; InfeasibleBudget where none is. `least` is one of few bytes to fall back
        on.
        """
        margins = {number: peak_margin(graph, self.device) if surely else 0 for number, graph in enumerate(self.graphs)}
        budgets = {number: max(0, budget_bytes - margin) for number, margin in margins.items()}
        rooms = self._rooms(budgets)
        open_ns = {number: self._problem(number).class_bound_ns(room) for number, room in rooms.items()}  # as far as is known
        found: dict[int, Plan] = {}
        best_ns = LONGEST_STEP_NS
        late: NoPlanInTime | None = None
        waits = max(rooms, default=0) if least is None else self._number(least)  # there plans may wait for flash
        for number in sorted(rooms, key=lambda number: (open_ns[number], number)):
            if found and (open_ns[number] >= best_ns or effort.over):
                continue
            try:
                known = least if number == waits else None
                share = effort.of(Phase.CHUNKS) if found else effort
                found[number] = solve(self._problem(number), budgets[number], share, known, may_wait=number == waits)
                open_ns[number] = _bound_ns(found[number])
                best_ns = min(best_ns, _step_ns(found[number]))
            except InfeasibleBudget:
                del open_ns[number]
            except NoPlanInTime as error:
                late = error
        if not found:
            raise late or self._infeasible(budget_bytes, effort, least)
        whole_ns = min(self._problem(number).whole_bound_ns(room) for number, room in rooms.items())
        return _bounded(min(found.values(), key=_step_ns), min(open_ns.values()), whole_ns)

    def write_less(self, fastest: Plan, effort: Effort) -> Plan:
        """A plan about as fast that writes less, in the same chunks; the given one where none is found."""
        return write_less(self._problem(self._number(fastest)), fastest, effort)

    def _infeasible(self, budget_bytes: int, effort: Effort, least: Plan | None) -> InfeasibleBudget:
        nbytes = self.footprint(least or self.least(budget_bytes, effort))
        return InfeasibleBudget(
            f"no plan found within {budget_bytes} bytes: one of {nbytes} exists: raise `budget`", budget_bytes, nbytes
        )

    def _rooms(self, budgets: Mapping[int, int]) -> dict[int, int]:
        """Bytes of arena under a budget for each way, by number, where the op that needs most fits."""
        rooms = {number: arena_budget(graph, self.device, budgets[number]) for number, graph in enumerate(self.graphs)}
        return {number: room for number, room in rooms.items() if self.graphs[number].largest_op_bytes <= room}

    def _number(self, plan: Plan) -> int:
        return next(number for number, graph in enumerate(self.graphs) if graph.workload == plan.workload)

    def _problem(self, number: int) -> Problem:
        if number not in self._problems:
            self._problems[number] = pose(self.graphs[number], self.device, self._effort)
        return self._problems[number]


def tilings(graph: Graph, device: Device, effort: Effort | None = None) -> Tilings:
    """A step whole and in chunks. What is posed later stops with `effort`."""
    return Tilings(in_chunks(graph), device, effort)


def in_chunks(graph: Graph) -> tuple[Graph, ...]:
    """A step as it is, and in smaller and smaller chunks unless it says itself in which."""
    workload = graph.workload
    ways = [] if workload.chunk else [(chunk, whole) for chunk, whole in WAYS if chunk < workload.tokens]
    return (graph, *(build_graph(graph.config, replace(workload, chunk=chunk, whole_attention=whole)) for chunk, whole in ways))


def _step_ns(plan: Plan) -> int:
    assert plan.solver is not None
    return plan.solver.objective_ns


def _bound_ns(plan: Plan) -> int:
    assert plan.solver is not None
    return plan.solver.bound_ns


def _bounded(plan: Plan, bound_ns: int, whole_ns: int) -> Plan:
    """A plan with bounds over all chunks."""
    facts = plan.solver
    assert facts is not None
    assert whole_ns <= facts.objective_ns, "a bound above a plan's time is a bug"
    bound_ns = min(max(bound_ns, whole_ns), facts.objective_ns)
    gap = 1 - bound_ns / facts.objective_ns
    status: Literal["optimal", "feasible"] = "feasible" if gap else "optimal"
    return replace(plan, solver=replace(facts, status=status, bound_ns=bound_ns, whole_bound_ns=whole_ns, gap=gap))
