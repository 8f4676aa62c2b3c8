"""Find the plan: place options over the chain, write the answer out, time it, and look again where it waits for flash.

Two bounds come with a plan: one over the class that placement chooses from, one over all plans of the language.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.plan import Plan, SolverFacts
from mebp.planner.bound import distinct_menus
from mebp.planner.budget import arena_budget, outside_arena
from mebp.planner.hint import hint
from mebp.planner.lower import lower
from mebp.planner.place import Placed, most_room, place, recipe_of, shortlists_of, smallest, starts, variables_of
from mebp.planner.problem import Problem
from mebp.planner.recipe import Recipe
from mebp.planner.rules import FitsTheArena, NothingResident
from mebp.planner.search import Effort, Limits, Progress, Stop, search
from mebp.sim.simulate import simulate

CLASS_SCOPE = (
    "the options of the layers' menus (saving within a layer, or where flash is short within a segment of alike layers),"
    " no waiting for flash but at the head, op order fixed, weights streamed, held or resident, one processor"
)
WHOLE_SCOPE = "every plan of the language on one processor: any order, any recomputation, segments of any length"
BESIDE_SCOPE = "every plan of the language, unpacking beside the processor or on it: any order, any recomputation"
TIGHTENINGS = 6
MOST_WAITING = 1e6  # times a step's own time for transfers: nobody minds how long
BESIDE = (1.0, 0.5, 0.2, 0.0)  # parts of forward and backward for transfers, less and less while plans wait for them
WAITING = (1.5, 2.0, 4.0, MOST_WAITING)  # the same where nothing fits without waiting
NO_WAIT = 2e-3  # of a step: too little to look for another plan
DESCENTS = 12  # attempts to go below the least plan
QUICK_S = 0.1  # deterministic seconds of each
LATER = 0.5  # of the time that the first placement may take, for each further one


def least_plan(problem: Problem, budget_bytes: int, limits: Limits, stop: Stop | None = None) -> Plan:
    """The plan with the least arena that the search finds: nothing of its class is known to fit a smaller budget."""
    problem, effort = replace(problem, flash_share=MOST_WAITING), Effort(limits=limits, stop=stop or Stop())
    model = cp_model.CpModel()
    start = min(starts(problem), key=lambda plan: (plan.room, plan.stored), default=None)
    shortlists = shortlists_of([smallest(menu) for menu in distinct_menus(problem.stretches)], problem, start)
    variables = variables_of(problem, model, shortlists)
    floor = max(min(o.peak for o in stretch.menu.options) for stretch in problem.stretches)
    room = model.new_int_var(floor, most_room(problem), "room")
    FitsTheArena(room=room).post(model, variables)
    NothingResident().post(model, variables)
    if start is not None:
        hint(model, variables, start, 0)
        model.add_hint(room, start.room)
    model.minimize(room)
    answer = search(model, effort)
    assert answer is not None, "with unbounded room some plan fits"
    recipe = recipe_of(problem, variables, answer.solver)
    best = _smallest_written(problem, recipe, budget_bytes)
    for _ in range(DESCENTS):  # the model counts some workspace twice: what it calls too small may still be written smaller
        placed = _placed_below(problem, best.arena_bytes, effort.quick(QUICK_S))
        smaller = _smallest_written(problem, placed.recipe, budget_bytes) if placed else best
        if smaller.arena_bytes >= best.arena_bytes:
            break
        best = smaller
    return best


def _placed_below(problem: Problem, arena_bytes: int, effort: Effort) -> Placed | None:
    """A placement in less than `arena_bytes`, if one is found."""
    try:
        return None if effort.stop.asked else place(problem, arena_bytes - 1, effort)
    except NoPlanInTime:
        return None


def _smallest_written(problem: Problem, recipe: Recipe, budget_bytes: int) -> Plan:
    """The plan of a recipe with transfers ahead of time or waited for, whichever takes less memory."""
    written = (
        lower(problem.graph, problem.device, recipe, name="least", budget_bytes=budget_bytes, waits=waits)
        for waits in (False, True)
    )
    return min(written, key=lambda plan: plan.arena_bytes)


def solve(
    problem: Problem,
    budget_bytes: int,
    limits: Limits,
    progress: Progress | None = None,
    stop: Stop | None = None,
    least: Plan | None = None,
) -> Plan:
    """The fastest plan found under `budget_bytes` of footprint; raises InfeasibleBudget if none is.

    Where unpacking has an engine of its own, the fastest over which weights that one unpacks ahead.
    """
    effort, begin = Effort(limits=limits, stop=stop or Stop(), progress=progress), time.monotonic()
    found = [_best(problem, budget_bytes, effort, least)]
    later = replace(effort.part(LATER), progress=None)
    for variant in problem.ahead:
        with suppress(InfeasibleBudget, NoPlanInTime):
            found += [] if effort.stop.asked else [_best(variant, budget_bytes, later, found[0].plan)]
    best = min(found, key=lambda fit: fit.step_ns)
    return replace(best.plan, solver=_facts(problem, best, time.monotonic() - begin, budget_bytes))


def _best(problem: Problem, budget_bytes: int, effort: Effort, least: Plan | None) -> "_Fit":
    """The fastest plan found for one choice of weights to unpack ahead.

    Its time is the simulator's. Where that has waits for flash, plans that use flash less are looked at too; where nothing fits
    without waiting, plans that wait, `least` (a plan that fits, where one is known: the least) among them.
    """
    room = arena_budget(problem.graph, problem.device, budget_bytes)
    found: list[_Fit] = []
    for share in BESIDE[:1] if problem.cost.ahead else BESIDE:  # there it rather waits for unpacking
        allowed = effort.part(LATER) if found else effort
        found += _tried(replace(problem, flash_share=share), room, budget_bytes, allowed, among=found)
        if effort.stop.asked or not found or not found[-1].waits or found[-1].share < share:
            break  # without flash there is less room, not more
    if found:
        return _fastest(found)
    least = least or least_plan(problem, budget_bytes, effort.limits, effort.stop)
    if least.arena_bytes > room:
        least_bytes = outside_arena(problem.graph, problem.device) + least.arena_bytes
        raise InfeasibleBudget(f"no plan found within {budget_bytes} bytes: one of {least_bytes} exists", budget_bytes, least_bytes)
    found = [_timed(problem, replace(least, name="solved"))]
    for share in WAITING:
        if not effort.stop.asked:
            waiting = replace(problem, flash_share=share)
            found += _tried(waiting, room, budget_bytes, effort.part(LATER), among=found)
    return _fastest(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A plan that fits, its simulated time, what its placement said of it, and the share of flash time that it was found with."""

    plan: Plan
    step_ns: int
    model_ns: int
    bound_ns: int = 0
    share: float = MOST_WAITING

    @property
    def waits(self) -> bool:
        """Whether it loses time to what its placement did not know: then one that uses flash less may be faster."""
        return self.step_ns > self.bound_ns * (1 + NO_WAIT)


def _timed(problem: Problem, plan: Plan, placed: Placed | None = None, *, bound_ns: int = 0) -> _Fit:
    step_ns = simulate(plan, problem.graph, problem.device).step_ns
    if placed is None:
        return _Fit(plan=plan, step_ns=step_ns, model_ns=step_ns)
    share = problem.flash_share
    return _Fit(plan=plan, step_ns=step_ns, model_ns=placed.model_ns, bound_ns=bound_ns, share=share)


def _fastest(found: Sequence[_Fit]) -> _Fit:
    """The fastest plan found, with the bound of its class where plans that use flash as they like were bounded."""
    best = min(found, key=lambda fit: fit.step_ns)
    bound_ns = found[0].bound_ns if found[0].share == BESIDE[0] else 0
    return replace(best, bound_ns=bound_ns)


def _tried(problem: Problem, room: int, budget_bytes: int, effort: Effort, *, among: Sequence[_Fit]) -> list[_Fit]:
    """The plan at one share of flash time, if one fits; running out of time counts only while nothing is found."""
    try:
        fit = _fit(problem, room, budget_bytes, effort)
    except NoPlanInTime:
        if not among:
            raise
        return []
    return [fit] if fit else []


def _fit(problem: Problem, room: int, budget_bytes: int, effort: Effort) -> _Fit | None:
    """Place and write out. Packing and transfers in flight may need more than the live bytes that the model bounds:
    then in less room.
    """
    allowed, first = room, None
    for _ in range(TIGHTENINGS):
        placed = place(problem, allowed, effort.part(LATER) if first else effort)
        if placed is None:
            break
        first = first or placed
        for waits in (False, True) if problem.flash_share > BESIDE[0] else (False,):
            plan = _written(problem, placed.recipe, budget_bytes, waits=waits)
            if plan.arena_bytes <= room:
                return _timed(problem, plan, placed, bound_ns=first.bound_ns)  # the first is for all the room, later ones for less
        allowed -= 3 * (plan.arena_bytes - room) // 2 + room // 1000
    if first is None:
        return None
    plan = _written(problem, first.recipe, budget_bytes, waits=True)
    return _timed(problem, plan, first) if plan.arena_bytes <= room else None  # unbounded: its class waits for nothing


def _written(problem: Problem, recipe: Recipe, budget_bytes: int, *, waits: bool = False) -> Plan:
    return lower(problem.graph, problem.device, recipe, name="solved", budget_bytes=budget_bytes, waits=waits)


def _facts(problem: Problem, fit: _Fit, wall_s: float, budget_bytes: int) -> SolverFacts:
    """What is known of a plan, its time being the simulator's: the model's own plus the waits that the model leaves out.

    The bound of the class is for one processor; with an engine for unpacking beside it the bound on all plans stands alone.
    """
    whole_ns = problem.whole_bound_ns(arena_budget(problem.graph, problem.device, budget_bytes))
    beside = bool(problem.device.runtime.unpack_beside)
    class_ns = 0 if beside else fit.bound_ns
    assert max(whole_ns, class_ns) <= fit.step_ns, "a bound above a plan's time is a bug"
    bound_ns = max(whole_ns, class_ns)
    return SolverFacts(
        status="optimal" if fit.step_ns <= bound_ns else "feasible",
        objective_ns=fit.step_ns,
        model_ns=fit.model_ns,
        bound_ns=bound_ns,
        gap=max(0.0, 1 - bound_ns / fit.step_ns),
        whole_bound_ns=whole_ns,
        wall_s=wall_s,
        scope=BESIDE_SCOPE if beside else CLASS_SCOPE,
        whole_scope=BESIDE_SCOPE if beside else WHOLE_SCOPE,
    )
