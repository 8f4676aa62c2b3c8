"""Problems posed once per session and plans made once per (graph, device, name), for tests that only look at them."""

from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.effort import Effort
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.solver.problem import Problem, pose
from mebp.planner.solver.solve import least_plan, solve
from mebp.sim.device import Device

_PROBLEMS: dict[object, Problem] = {}
_PLANS: dict[object, Plan] = {}


def posed(graph: Graph, device: Device) -> Problem:
    """The problem of a graph on a device."""
    key = (graph.signature, repr(device))
    if key not in _PROBLEMS:
        _PROBLEMS[key] = pose(graph, device)
    return _PROBLEMS[key]


def fixed(name: str, graph: Graph, device: Device, budget: int = 10**9) -> Plan:
    """A strategy's plan for a graph that it runs as it is."""
    key = (name, graph.signature, repr(device), budget)
    if key not in _PLANS:
        _PLANS[key] = STRATEGIES[name].plan(graph, device, budget)
    return _PLANS[key]


def leanest(problem: Problem, effort: Effort) -> Plan:
    """The least plan of a problem."""
    key = ("least", *_facts(problem, effort))
    if key not in _PLANS:
        _PLANS[key] = least_plan(problem, 0, effort)
    return _PLANS[key]


def solved(problem: Problem, budget: int, effort: Effort) -> Plan:
    """The solved plan of a problem; InfeasibleBudget where there is none."""
    key = ("solved", budget, *_facts(problem, effort))
    if key not in _PLANS:
        _PLANS[key] = solve(problem, budget, effort)
    return _PLANS[key]


def _facts(problem: Problem, effort: Effort) -> tuple[object, ...]:
    return problem.graph.signature, repr(problem.device), problem.flash_share, effort.deterministic_s, effort.seed
