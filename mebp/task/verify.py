"""Execute a grid of plans here and compare each with its prediction."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from mebp.errors import Disagreement, InfeasibleBudget
from mebp.executor.measure.job import Job
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.effort import Effort
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.row import strategy_row
from mebp.planner.tiling import tilings
from mebp.sim.device import Device
from mebp.task.run import RunResult, run
from mebp.unit import show_nbytes

FIXED = ("checkpoint-1", "mebp", "keep-all")
BUDGETS = (1.1, 1.5)  # times the least plan's footprint, for solved plans
WORST_MEMORY, WORST_TIME, MEDIAN_TIME = 0.03, 0.20, 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Absolute relative errors over all plans: of memory the worst, of steps median and worst, and these at the speed of
    each run.
    """

    memory: float
    median_time: float
    worst_time: float
    median_time_at_speed: float
    worst_time_at_speed: float


def verify(
    graph: Graph, machine: Device, device: Device, job: Job, effort: Effort, report: Callable[[str], None]
) -> tuple[RunResult, ...]:
    """Run the grid on `machine`; `device` is the same with what was asked to be changed, and predicts. `report(name)`
    before each.
    """
    report("planning")
    found = []
    for plan, own in list(_plans(graph, device, effort)):
        report(f"running {plan.name}")
        found.append(run(plan, own, machine, device, job))
    return tuple(found)


def _plans(graph: Graph, device: Device, effort: Effort) -> Iterator[tuple[Plan, Graph]]:
    """The grid, each with the graph that it runs: fixed recipes, the least plan, and solved ones between."""
    for name in FIXED:
        row = strategy_row(STRATEGIES[name], graph, device, device.default_budget_bytes)
        yield row.plan, row.graph
    step = tilings(graph, device)
    least = step.least(0, effort)
    yield least, step.graph_of(least)
    for factor in BUDGETS:
        budget = int(factor * step.footprint(least))
        try:
            solved = step.solve(budget, effort)
        except InfeasibleBudget:
            continue
        yield replace(solved, name=f"solved at {show_nbytes(budget)}"), step.graph_of(solved)


def errors_of(found: tuple[RunResult, ...]) -> Errors:
    """What all runs together say."""
    times, at_speed = [abs(one.time_error) for one in found], [abs(one.time_error_at_its_speed) for one in found]
    return Errors(
        memory=max(abs(one.memory_error) for one in found),
        median_time=median(times),
        worst_time=max(times),
        median_time_at_speed=median(at_speed),
        worst_time_at_speed=max(at_speed),
    )


def summary(errors: Errors) -> str:
    """The errors in one line."""
    return (
        f"peak: worst error {errors.memory:.1%}; step: median error {errors.median_time:.1%}, worst {errors.worst_time:.1%};"
        f" at the machine's speed in each run, median {errors.median_time_at_speed:.1%}, worst {errors.worst_time_at_speed:.1%}"
    )


def require_verified(found: tuple[RunResult, ...]) -> None:
    """Raise Disagreement where predictions are off by more than they may be, at the machine's speed in each run."""
    errors = errors_of(found)
    wrong = [one.plan.name for one in found if not one.arena_exact or abs(one.memory_error) > WORST_MEMORY]
    if wrong:
        raise Disagreement(f"memory of {', '.join(wrong)} is off by more than {WORST_MEMORY:.0%}")
    if errors.worst_time_at_speed > WORST_TIME or errors.median_time_at_speed > MEDIAN_TIME:
        bounds = f"bounds: {MEDIAN_TIME:.0%}, {WORST_TIME:.0%}"
        raise Disagreement(f"{summary(errors)} ({bounds}): try again on a quiet machine")
