"""The trade-off curve: the fastest plan at a row of budgets, from the least feasible one to where nothing is saved any more.

Solving a budget takes seconds; what no plan can beat there (`best_step_ns`) takes milliseconds, and lies close below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from mebp.check import check
from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.planner.effort import Effort
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.tiling import Tilings
from mebp.sim.footprint import outside_arena
from mebp.sim.simulate import Prediction, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The fastest plan within a budget: its prediction, and a time that no plan of its class goes below there."""

    budget_bytes: int
    prediction: Prediction
    bound_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """A budget, and the step time that no plan goes below there."""

    budget_bytes: int
    best_step_ns: int


def outline(step: Tilings, least_bytes: int, most_bytes: int, num_corners: int) -> tuple[Corner, ...]:
    """Lower bounds on the step time at budgets in equal ratios from `least_bytes` to keep-all, or to `most_bytes` where
    that is more.
    """
    found: list[Corner] = []
    for budget in reversed(_ratios(step, least_bytes, num_corners, most_bytes)):
        above = found[-1].best_step_ns if found else 0  # a bound for more memory holds for less, too
        found.append(Corner(budget_bytes=budget, best_step_ns=max(above, step.best_step_ns(budget))))
    return tuple(reversed(found))


def curve(
    step: Tilings,
    effort: Effort,
    num_points: int,
    most_bytes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Point, ...]:
    """Solve at `num_points` budgets in equal ratios, up to keep-all or `most_bytes` where that is more; `progress(number)` before
    each. A plan that fits a smaller budget also fits a larger one, so times never rise. A stop ends it with the points so far.
    """
    points: list[Point] = []
    for number, budget in enumerate(budgets(step, effort, num_points, most_bytes)):
        if progress:
            progress(number)
        if effort.over:
            break
        try:
            plan = step.solve(budget, effort)
        except (InfeasibleBudget, NoPlanInTime):
            continue
        assert plan.solver is not None
        graph = step.graph_of(plan)
        check(plan, graph)
        prediction = simulate(plan, graph, step.device)
        if points and points[-1].prediction.step_ns <= prediction.step_ns:
            prediction = points[-1].prediction
        points.append(Point(budget_bytes=budget, prediction=prediction, bound_ns=min(plan.solver.bound_ns, prediction.step_ns)))
    return tuple(points)


def budgets(step: Tilings, effort: Effort, num_points: int, most_bytes: int = 0) -> list[int]:
    """Footprints from that of the least plan to that of keep-all, or to `most_bytes`, in equal ratios."""
    least = step.footprint(step.least(0, effort))
    return _ratios(step, least, num_points, most_bytes)


def _ratios(step: Tilings, low: int, count: int, most: int = 0) -> list[int]:
    """`count` budgets in equal ratios, from `low` to what keep-all takes, or to `most` where that is more."""
    keep_all = STRATEGIES["keep-all"].plan(step.graph, step.device, 0).arena_bytes
    high = max(low + 1, most, outside_arena(step.graph, step.device) + keep_all)
    ratio = (high / low) ** (1 / (count - 1))
    return sorted({high, *(round(low * ratio**number) for number in range(count - 1))})


def saved_ns_per_byte(points: tuple[Point, ...]) -> list[float]:
    """What each step along the curve saves: nanoseconds per byte of budget more (the first has none before it)."""
    found = [0.0]
    for before, after in pairwise(points):
        found.append((before.prediction.step_ns - after.prediction.step_ns) / (after.budget_bytes - before.budget_bytes))
    return found
