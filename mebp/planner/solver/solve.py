"""Find the plan: place options over the chain, write the result out, time it, and look again where it waits for flash.

Two bounds come with a plan: one over the class that placement chooses from, one over all plans of the language.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.plan import Plan, SolverFacts
from mebp.planner.effort import Effort, Phase
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving
from mebp.planner.solver.bound import distinct_menus
from mebp.planner.solver.hint import hint_start
from mebp.planner.solver.model import Model, most_room
from mebp.planner.solver.place import Placement, place, shortlists_of, smallest, starts
from mebp.planner.solver.problem import Problem
from mebp.planner.solver.search import search
from mebp.sim.footprint import arena_budget, outside_arena
from mebp.sim.simulate import simulate

CLASS_SCOPE = (
    "the options of the layers' menus (saving within a layer, or where flash is short within a segment of alike layers),"
    " no waiting for flash but at the head, op order fixed, weights streamed, unpacked whole, shared or resident, one processor"
)
WHOLE_SCOPE = "every plan of the language on one processor: any order, any recomputation, segments of any length"
CONCURRENT_SCOPE = "every plan of the language, unpacking on an engine of its own or on the processor: any order, any recomputation"

# Parts of forward and backward that transfers may take.
UNLIMITED = 1e6  # times a step's own time: effectively unlimited
CONCURRENT = (1.0, 0.5, 0.2, 0.0)  # tried in order while the plan stalls on flash
STALLING = (1.5, 2.0, 4.0, UNLIMITED)  # the same where nothing fits without stalling

LEAST_SEARCHES = (False, True, True)  # whether each writes; the last one is left out where the others were slow
QUICK = 0.2  # of the wall seconds: what the first searches for the least plan take where that is quick
SLACK = 0.01  # of a step: what a plan that writes less may take longer
WRITTEN_PARTS = (0.0, 0.125, 0.25, 0.5)  # of what the fastest writes, tried in order
STALL = 2e-3  # of a step: less is too little to look for another plan
TIGHTENINGS = 6  # attempts to write a placement out in the room that there is
DESCENTS = 12  # attempts to go below the least plan


def solve(problem: Problem, budget_bytes: int, effort: Effort, least: Plan | None = None, *, may_wait: bool = True) -> Plan:
    """The fastest plan found under `budget_bytes` of footprint; raises InfeasibleBudget if none is.

    `least` is a plan of few bytes to fall back on, where one is known. Unless it `may_wait` for flash, only plans that do not are
    looked for. Where unpacking has an engine of its own, this is the fastest over which weights that one unpacks ahead.
    """
    begin = time.monotonic()
    found = [_Attempts(problem, budget_bytes, effort, least).best(may_wait=may_wait)]
    for variant in problem.ahead:
        with suppress(InfeasibleBudget, NoPlanInTime):
            if not effort.over:
                found.append(_Attempts(variant, budget_bytes, effort.of(Phase.VARIANT), found[0].plan).best(may_wait=may_wait))
    best = min(found, key=lambda timed: timed.step_ns)
    return replace(best.plan, solver=_facts(problem, best, time.monotonic() - begin, budget_bytes))


def write_less(problem: Problem, fastest: Plan, effort: Effort) -> Plan:
    """Of plans about as fast as `fastest` (by SLACK) the one that writes least of those that are found: a write must pay.

    Its facts name the bounds of the fastest, which hold for it too.
    """
    written = simulate(fastest, problem.graph, problem.device).flash_written_bytes
    facts = fastest.solver
    assert facts is not None
    for part in WRITTEN_PARTS if written else ():
        found: list[_Timed] = []
        for variant in (problem, *problem.ahead):
            capped = replace(variant, written_cap_bytes=int(part * written))
            with suppress(InfeasibleBudget, NoPlanInTime):
                effort.require_time()
                found += _Attempts(capped, fastest.budget_bytes, effort.of(Phase.THRIFT), None).without_stalling()
        best = min(found, key=lambda timed: timed.step_ns, default=None)
        if best is not None and best.step_ns <= facts.objective_ns * (1 + SLACK):
            gap = max(0.0, 1 - facts.bound_ns / best.step_ns)
            status: Literal["optimal", "feasible"] = "optimal" if best.step_ns <= facts.bound_ns else "feasible"
            own = replace(facts, status=status, objective_ns=best.step_ns, model_ns=best.model_ns, gap=gap)
            return replace(best.plan, solver=own)
    return fastest


def least_plan(problem: Problem, budget_bytes: int, effort: Effort) -> Plan:
    """The plan with the smallest arena that the search finds: nothing of its class is known to fit a smaller budget.

    It begins with plans that write nothing, from which it goes on under the cap: more freedom never makes it larger.
    """
    problem = replace(problem, flash_share=UNLIMITED)
    begin = time.monotonic()
    found: list[_Least] = []
    for number, writes in enumerate(LEAST_SEARCHES):
        slow = number == len(LEAST_SEARCHES) - 1 and time.monotonic() - begin > QUICK * effort.wall_s
        if number and (not problem.cap_bytes or (found and (effort.over or slow))):
            break
        share = effort.of(Phase.LEAST)
        least = _least(
            problem,
            writes * problem.cap_bytes,
            min(found, key=lambda one: one.room) if found else None,
            replace(share, seed=share.seed + number),
        )
        found += [least] if least is not None else []
    if not found:
        raise NoPlanInTime("the solver found no plan in time: raise `time_limit`")
    smallest_room = min(found, key=lambda one: one.room)
    best = _smallest_written(problem, smallest_room.recipe, budget_bytes)
    if len(found) > 1 and found[0].room < best.arena_bytes:  # written out, the plan without writes may be the smaller one
        best = min(best, _smallest_written(problem, found[0].recipe, budget_bytes), key=lambda plan: plan.arena_bytes)
    for _ in range(DESCENTS):  # the model counts some workspace twice: what it calls too small may still be written smaller
        placement = _placed_below(problem, best.arena_bytes, effort.of(Phase.DESCENT))
        smaller = _smallest_written(problem, placement.recipe, budget_bytes) if placement else best
        if smaller.arena_bytes >= best.arena_bytes:
            break
        best = smaller
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class _Least:
    """A placement in few bytes: its room as the model counts it, its recipe, and the decisions behind it by name."""

    room: int
    recipe: Recipe
    values: Mapping[str, int]


def _least(problem: Problem, cap_bytes: int, known: _Least | None, effort: Effort) -> _Least | None:
    """The placement of least room that writes at most `cap_bytes`, looked for from a `known` one; None where none is found."""
    limited = replace(problem, written_cap_bytes=cap_bytes)
    start = min(starts(limited), key=lambda plan: (plan.room, plan.stored), default=None)
    shortlists = shortlists_of([smallest(menu) for menu in distinct_menus(problem.stretches)], problem, start)
    floor = max(min(o.peak for o in stretch.menu.options) for stretch in problem.stretches)
    model = Model(limited, shortlists, (floor, most_room(problem)), residence=False)
    if known:
        model.variables.hint(known.values)
    elif start is not None:
        hint_start(model.cp, model.variables, start, 0)
        model.cp.add_hint(model.room, start.room)
    model.minimise_room()
    with suppress(NoPlanInTime):
        solution = search(model.cp, effort)
        if solution is not None:
            room = round(solution.solver.objective_value)
            return _Least(room=room, recipe=model.recipe(solution), values=model.values(solution))
    return None


def _placed_below(problem: Problem, arena_bytes: int, effort: Effort) -> Placement | None:
    """A placement in less than `arena_bytes`, if one is found."""
    try:
        return None if effort.over else place(problem, arena_bytes - 1, effort)
    except NoPlanInTime:
        return None


def _smallest_written(problem: Problem, recipe: Recipe, budget_bytes: int) -> Plan:
    """The plan of a recipe with transfers ahead of time or waited for, whichever takes less memory."""
    written = (
        lower(problem.graph, problem.device, recipe, name="least", budget_bytes=budget_bytes, waits=waits)
        for waits in ((False, True) if Saving.STORE in recipe.saving.values() else (False,))
    )
    return min(written, key=lambda plan: plan.arena_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """A plan that fits and its simulated time; `model_ns` and `bound_ns` (0: none) are what its placement said. `full_flash_share`
    where all of forward and backward was available for transfers: then `bound_ns` bounds the class.
    """

    plan: Plan
    step_ns: int
    model_ns: int
    bound_ns: int = 0
    full_flash_share: bool = False

    @property
    def stalls(self) -> bool:
        """Whether it loses time to what its placement did not know: then one that uses flash less may be faster."""
        return self.step_ns > self.bound_ns * (1 + STALL)


class _Attempts:
    """The attempts at one problem under one budget: placements that may use flash more or less, each written out and timed."""

    def __init__(self, problem: Problem, budget_bytes: int, effort: Effort, least: Plan | None) -> None:
        self.problem = problem
        self.budget_bytes = budget_bytes
        self.effort = effort
        self.least = least
        self.room = arena_budget(problem.graph, problem.device, budget_bytes)

    def best(self, *, may_wait: bool) -> _Timed:
        """The fastest plan found for one choice of weights to unpack ahead. Its time is the simulator's."""
        found = self.without_stalling() or (self._stalling() if may_wait else [])
        if not found:
            raise InfeasibleBudget(f"nothing fits {self.budget_bytes} bytes without waiting for flash", self.budget_bytes, 0)
        return _fastest(found)

    def without_stalling(self) -> list[_Timed]:
        """Plans whose transfers run concurrently with the processor; while one stalls all the same, one that uses flash less is
        looked for too. Empty where none fits.
        """
        found: list[_Timed] = []
        for share in CONCURRENT[:1] if self.problem.cost.ahead else CONCURRENT:  # there it rather waits for unpacking
            timed = self._try(share, self.effort.of(Phase.RETRY) if found else self.effort, required=not found)
            found += [timed] if timed else []
            if self.effort.over or not found or not found[-1].stalls:
                break
        return found

    def _stalling(self) -> list[_Timed]:
        """The least plan, and faster ones that may wait for flash; InfeasibleBudget where not even the least fits."""
        least = self.least or least_plan(self.problem, self.budget_bytes, self.effort)
        if least.arena_bytes > self.room:
            least_bytes = outside_arena(self.problem.graph, self.problem.device) + least.arena_bytes
            message = f"no plan found within {self.budget_bytes} bytes: one of {least_bytes} exists"
            raise InfeasibleBudget(message, self.budget_bytes, least_bytes)
        step_ns = self._step_ns(least)
        found = [_Timed(plan=replace(least, name="solved"), step_ns=step_ns, model_ns=step_ns)]
        for share in STALLING:
            if not self.effort.over:
                timed = self._try(share, self.effort.of(Phase.RETRY), required=False)
                found += [timed] if timed else []
        return found

    def _try(self, share: float, effort: Effort, *, required: bool) -> _Timed | None:
        """The plan at one share of flash time, if one fits; running out of time counts where the attempt is `required`."""
        try:
            return self._place_and_write(replace(self.problem, flash_share=share), effort)
        except NoPlanInTime:
            if required:
                raise
            return None

    def _place_and_write(self, problem: Problem, effort: Effort) -> _Timed | None:
        """Place, then write out. Packing and transfers in flight may need more than the live bytes that the model bounds: then
        place in less room.
        """
        allowed, first = self.room, None
        ways = (False, True) if problem.flash_share > CONCURRENT[0] else (False,)
        for _ in range(TIGHTENINGS):
            placement = place(problem, allowed, effort.of(Phase.RETRY) if first else effort)
            if placement is None:
                break
            first = first or placement
            for waits in ways:
                plan = self._write(placement.recipe, waits=waits)
                if plan.arena_bytes <= self.room:
                    full_flash_share = problem.flash_share == CONCURRENT[0]
                    return self._time(
                        plan, placement, first.bound_ns, full_flash_share=full_flash_share
                    )  # later bounds are for less room
            allowed -= 3 * (plan.arena_bytes - self.room) // 2 + self.room // 1000
        if first is None:
            return None
        plan = self._write(first.recipe, waits=True)
        return self._time(plan, first, 0) if plan.arena_bytes <= self.room else None  # unbounded: its class does not stall

    def _write(self, recipe: Recipe, *, waits: bool) -> Plan:
        problem = self.problem
        return lower(problem.graph, problem.device, recipe, name="solved", budget_bytes=self.budget_bytes, waits=waits)

    def _time(self, plan: Plan, placement: Placement, bound_ns: int, *, full_flash_share: bool = False) -> _Timed:
        step_ns = self._step_ns(plan)
        return _Timed(plan=plan, step_ns=step_ns, model_ns=placement.model_ns, bound_ns=bound_ns, full_flash_share=full_flash_share)

    def _step_ns(self, plan: Plan) -> int:
        return simulate(plan, self.problem.graph, self.problem.device).step_ns


def _fastest(found: Sequence[_Timed]) -> _Timed:
    """The fastest plan found, with the bound of its class where one was found with the full flash share."""
    best = min(found, key=lambda timed: timed.step_ns)
    return replace(best, bound_ns=found[0].bound_ns if found[0].full_flash_share else 0)


def _facts(problem: Problem, best: _Timed, wall_s: float, budget_bytes: int) -> SolverFacts:
    """What is known of a plan, its time being the simulator's: the model's own plus the waits that the model leaves out.

    The bound on all plans stands alone where the plan is not of the class: with an engine of its own for unpacking, or faster
    than the class, because its first loads find free bytes and start before the head has ended.
    """
    whole_ns = problem.whole_bound_ns(arena_budget(problem.graph, problem.device, budget_bytes))
    assert whole_ns <= best.step_ns, "a bound above a plan's time is a bug"
    concurrent = problem.device.unpacks_concurrently
    of_class = not concurrent and best.bound_ns <= best.step_ns
    bound_ns = max(whole_ns, best.bound_ns) if of_class else whole_ns
    return SolverFacts(
        status="optimal" if best.step_ns <= bound_ns else "feasible",
        objective_ns=best.step_ns,
        model_ns=best.model_ns,
        bound_ns=bound_ns,
        gap=max(0.0, 1 - bound_ns / best.step_ns),
        whole_bound_ns=whole_ns,
        wall_s=wall_s,
        scope=CONCURRENT_SCOPE if concurrent else CLASS_SCOPE if of_class else WHOLE_SCOPE,
        whole_scope=CONCURRENT_SCOPE if concurrent else WHOLE_SCOPE,
    )
