"""Find the plan: price memory, shortlist what can still be best, place it with CP-SAT, write the answer out and time it.

The class that placement chooses from: each activation saved or recomputed within its own layer (or segment of layers), each weight
streamed, held from recomputation to backward or resident, first computations in the graph's order. Two bounds come with a plan:
one over this class, one over all plans of the language.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from ortools.sat.python import cp_model

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.models.graph import TensorId, WeightId
from mebp.plan import Plan, SolverFacts
from mebp.planner.bound import Bound, Floats, distinct_menus
from mebp.planner.budget import arena_budget, outside_arena
from mebp.planner.chain import Menu, Stretch, linear_of
from mebp.planner.hint import Uniform, hint, uniform_plans
from mebp.planner.lower import lower
from mebp.planner.menu import Option, relabel
from mebp.planner.objective import extra_time_ns, written_units
from mebp.planner.problem import Problem
from mebp.planner.recipe import Recipe, Saving, Unpacking, layer_inputs
from mebp.planner.rules import FitsTheArena, NothingResident, OneOptionPerLayer, ResidentReadAgain, SegmentsAreStreamed
from mebp.planner.search import Answer, Limits, Stop, search
from mebp.planner.variables import Variables
from mebp.sim.simulate import simulate

CLASS_SCOPE = (
    "the options of the layers' menus (saving within a layer, or where flash is short within a segment of alike layers),"
    " no waiting for flash but at the head, op order fixed, weights streamed, held or resident, one processor"
)
WHOLE_SCOPE = "every plan of the language on one processor: any order, any recomputation, segments of any length"
TIGHTENINGS = 6
MOST_WAITING = 1e6  # times a step's own time for transfers: nobody minds how long
BESIDE = (1.0, 0.5, 0.2, 0.0)  # parts of forward and backward for transfers, less and less while plans wait for them
WAITING = (1.5, 2.0, 4.0, MOST_WAITING)  # the same where nothing fits without waiting
NO_WAIT = 2e-3  # of a step: too little to look for another plan
DESCENTS = 12  # attempts to go below the least plan
QUICK_S = 0.1  # deterministic seconds of each
FIRST_LOOK = 24  # options a menu in the first round, cheapest at the bound's prices
MOST_OPTIONS = 160  # options a menu in the second round; where more are open, the bound at prices stands
LARGEST_OBJECTIVE = 2**60

Progress = Callable[[int, int], None]


def least_plan(problem: Problem, budget_bytes: int, limits: Limits, stop: Stop | None = None) -> Plan:
    """The plan with the least arena that the search finds: nothing of its class is known to fit a smaller budget."""
    problem = replace(problem, flash_share=MOST_WAITING)
    model = cp_model.CpModel()
    plans = _within_flash(problem, uniform_plans(problem.stretches, problem.heads))
    start = min(plans, key=lambda plan: (plan.room, plan.stored), default=None)
    shortlists = _union([_smallest(menu) for menu in distinct_menus(problem.stretches)], problem, start)
    variables = _variables(problem, model, shortlists)
    floor = max(min(o.peak for o in stretch.menu.options) for stretch in problem.stretches)
    ceiling = sum(max(o.kept_bytes + o.peak for o in s.menu.options) * len(s.layers) for s in problem.stretches)
    room = model.new_int_var(floor, ceiling + max(head.peak for head in problem.heads), "room")
    FitsTheArena(room=room).post(model, variables)
    NothingResident().post(model, variables)
    if start is not None:
        hint(model, variables, start, 0)
        model.add_hint(room, start.room)
    model.minimize(room)
    answer = search(model, limits, stop or Stop())
    assert answer is not None, "with unbounded room some plan fits"
    recipe = _recipe(problem, variables, answer.solver)
    best = _smallest_written(problem, recipe, budget_bytes)
    quick = replace(limits, deterministic_s=min(limits.deterministic_s, QUICK_S))
    for _ in range(DESCENTS):  # the model counts some workspace twice: what it calls too small may still be written smaller
        placed = _placed_below(problem, best.arena_bytes, quick, stop or Stop())
        smaller = _smallest_written(problem, placed.recipe, budget_bytes) if placed else best
        if smaller.arena_bytes >= best.arena_bytes:
            break
        best = smaller
    return best


def _placed_below(problem: Problem, arena_bytes: int, limits: Limits, stop: Stop) -> "_Placed | None":
    """A placement in less than `arena_bytes`, if one is found."""
    try:
        return None if stop.asked else _place(problem, arena_bytes - 1, limits, None, stop)
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

    The time that the plan carries is the simulator's. Where that has waits for flash, plans that use flash less are looked at too;
    where nothing fits without waiting, plans that wait, `least` (the least plan, where it is known already) among them.
    """
    stop = stop or Stop()
    room = arena_budget(problem.graph, problem.device, budget_bytes)
    found: list[_Fit] = []
    for share in BESIDE:
        found += _tried(replace(problem, flash_share=share), room, budget_bytes, limits, progress, stop, among=found)
        if stop.asked or not found or not found[-1].waits or found[-1].share < share:
            break  # without flash there is less room, not more
    if found:
        return _best(problem, found, room)
    least = least or least_plan(problem, budget_bytes, limits, stop)
    if least.arena_bytes > room:
        least_bytes = outside_arena(problem.graph, problem.device) + least.arena_bytes
        raise InfeasibleBudget(f"no plan found within {budget_bytes} bytes: one of {least_bytes} exists", budget_bytes, least_bytes)
    step_ns = simulate(least, problem.graph, problem.device).step_ns
    found = [_Fit(plan=replace(least, name="solved"), placed=None, share=MOST_WAITING, step_ns=step_ns)]
    for share in WAITING:
        if not stop.asked:
            found += _tried(replace(problem, flash_share=share), room, budget_bytes, limits, progress, stop, among=found)
    return _best(problem, found, room)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A plan that fits, from which placement (None: the least plan), with which share of flash time, and its simulated time."""

    plan: Plan
    placed: "_Placed | None"
    share: float
    step_ns: int

    @property
    def waits(self) -> bool:
        """Whether it loses time to what its placement did not know: then one that uses flash less may be faster."""
        return self.placed is not None and self.step_ns > self.placed.bound_ns * (1 + NO_WAIT)


def _best(problem: Problem, found: Sequence[_Fit], room: int) -> Plan:
    """The fastest plan found, with the bound of its class where plans that use flash as they like were bounded."""
    best = min(found, key=lambda fit: fit.step_ns)
    first = found[0].placed
    bound_ns = first.bound_ns if first and found[0].share == BESIDE[0] else 0
    wall_s = sum(fit.placed.wall_s for fit in found if fit.placed)
    return replace(best.plan, solver=_facts(problem, best, bound_ns, wall_s, room))


def _tried(
    problem: Problem,
    room: int,
    budget_bytes: int,
    limits: Limits,
    progress: Progress | None,
    stop: Stop,
    *,
    among: Sequence[_Fit],
) -> list[_Fit]:
    """The plan at one share of flash time, if one fits; running out of time counts only while nothing is found."""
    try:
        fit = _fit(problem, room, budget_bytes, limits, progress, stop)
    except NoPlanInTime:
        if not among:
            raise
        return []
    return [fit] if fit else []


def _fit(problem: Problem, room: int, budget_bytes: int, limits: Limits, progress: Progress | None, stop: Stop) -> _Fit | None:
    """Place and write out. Packing and transfers in flight may need more than the live bytes that the model bounds:
    then in less room.
    """
    allowed, first = room, None
    for _ in range(TIGHTENINGS):
        placed = _place(problem, allowed, limits, progress, stop)
        if placed is None:
            break
        first = first or placed
        for waits in (False, True) if problem.flash_share > BESIDE[0] else (False,):
            plan = _written(problem, placed.recipe, budget_bytes, waits=waits)
            if plan.arena_bytes <= room:
                step_ns = simulate(plan, problem.graph, problem.device).step_ns
                bound = replace(placed, bound_ns=first.bound_ns)  # it holds for the whole room, later ones for less of it
                return _Fit(plan=plan, placed=bound, share=problem.flash_share, step_ns=step_ns)
        allowed -= 3 * (plan.arena_bytes - room) // 2 + room // 1000
    if first is None:
        return None
    plan = _written(problem, first.recipe, budget_bytes, waits=True)
    step_ns = simulate(plan, problem.graph, problem.device).step_ns
    unbounded = replace(first, bound_ns=0)  # waiting takes less memory than its class allows for
    return _Fit(plan=plan, placed=unbounded, share=problem.flash_share, step_ns=step_ns) if plan.arena_bytes <= room else None


def _written(problem: Problem, recipe: Recipe, budget_bytes: int, *, waits: bool = False) -> Plan:
    return lower(problem.graph, problem.device, recipe, name="solved", budget_bytes=budget_bytes, waits=waits)


def _facts(problem: Problem, fit: _Fit, bound_ns: int, wall_s: float, room: int) -> SolverFacts:
    """What is known of a plan, its time being the simulator's: the model's own plus the waits that the model leaves out."""
    whole_ns = problem.whole_relaxation(room).best().bound_ns
    if not problem.device.runtime.unpack_beside:  # with a processor of its own for unpacking a step may take less
        assert max(whole_ns, 0 if fit.share > BESIDE[0] else bound_ns) <= fit.step_ns, "a bound above a plan's time is a bug"
    whole_ns, bound_ns = min(whole_ns, fit.step_ns), min(max(whole_ns, bound_ns), fit.step_ns)
    return SolverFacts(
        status="optimal" if fit.step_ns <= bound_ns else "feasible",
        objective_ns=fit.step_ns,
        model_ns=fit.placed.model_ns if fit.placed else fit.step_ns,
        bound_ns=bound_ns,
        gap=max(0.0, 1 - bound_ns / fit.step_ns),
        whole_bound_ns=whole_ns,
        wall_s=wall_s,
        scope=CLASS_SCOPE,
        whole_scope=WHOLE_SCOPE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A placement: the recipe, its time with no waits but those at the head, the bound of its class, seconds of search."""

    recipe: Recipe
    model_ns: int
    bound_ns: int
    wall_s: float


def _place(problem: Problem, room: int, limits: Limits, progress: Progress | None, stop: Stop) -> _Placed | None:
    """Two rounds: the cheapest options at the bound's prices, then all that can still be part of a better plan."""
    relaxations = problem.relaxations(room)
    if room <= 0 or not all(relaxation.feasible for relaxation in relaxations):
        return None
    bounds = [relaxation.best() for relaxation in relaxations]
    bound_ns = max(bound.bound_ns for bound in bounds)
    plans = [plan for plan in _within_flash(problem, uniform_plans(problem.stretches, problem.heads)) if plan.room <= room]
    start = min(plans, key=lambda plan: (plan.extra_ns, plan.stored, plan.room), default=None)
    first = [
        _union_of(_smallest(menu), *(_cheapest(bound.reduced_ns[i], FIRST_LOOK) for bound in bounds))
        for i, menu in enumerate(distinct_menus(problem.stretches))
    ]
    looked = _search(problem, room, limits, _union(first, problem, start), start, bound_ns, progress, stop)
    if looked is None or looked.model_ns <= bound_ns or stop.asked:
        return looked and replace(looked, bound_ns=min(bound_ns, looked.model_ns))
    still = [_still_open(bounds, i, looked.model_ns) for i in range(len(first))]
    shortlists = [
        _union_of(_cheapest(bounds[0].reduced_ns[i], MOST_OPTIONS), first[i]) if len(options) > MOST_OPTIONS else options
        for i, options in enumerate(still)
    ]
    try:
        final = _search(problem, room, limits, _union(shortlists, problem, start), start, bound_ns, progress, stop)
    except NoPlanInTime:
        final = None
    better = looked if final is None or final.model_ns > looked.model_ns else final
    whole_class = all(len(options) <= MOST_OPTIONS for options in still)
    proven = max(bound_ns, min(final.bound_ns, looked.model_ns)) if final and whole_class else bound_ns
    return replace(better, bound_ns=min(proven, better.model_ns))


def _still_open(bounds: Sequence[Bound], menu: int, known_ns: int) -> list[int]:
    """Numbers of the options that may be part of a plan faster than a known one, by every bound."""
    open_by = [bound.reduced_ns[menu] <= known_ns - bound.bound_ns for bound in bounds]
    numbers: list[int] = np.flatnonzero(np.logical_and.reduce(open_by)).tolist()
    return numbers


def _search(
    problem: Problem,
    room: int,
    limits: Limits,
    shortlists: list[list[int]],
    start: Uniform | None,
    bound_ns: int,
    progress: Progress | None,
    stop: Stop,
) -> _Placed | None:
    model = cp_model.CpModel()
    variables = _variables(problem, model, shortlists)
    FitsTheArena(room=room).post(model, variables)
    if start is not None:
        hint(model, variables, start, room - start.room)
    unit, scale = _tie_break(problem)
    model.minimize(extra_time_ns(variables) * scale + written_units(variables, unit))

    def watch(objective: float, proven: float) -> None:
        if progress:
            progress(problem.base_ns + int(objective // scale), max(bound_ns, problem.base_ns + int(proven // scale)))

    answer = search(model, limits, stop, watch, share=0.5)
    if answer is None:
        return None
    return _Placed(
        recipe=_recipe(problem, variables, answer.solver),
        model_ns=problem.base_ns + round(answer.solver.objective_value) // scale,
        bound_ns=_step_ns(problem, answer, scale),
        wall_s=answer.solver.wall_time,
    )


def _tie_break(problem: Problem) -> tuple[int, int]:
    """(bytes of a unit written, what a nanosecond counts against one): time first, then writes, in 62 bits."""
    smallest = min((o.stored_bytes for s in problem.stretches for o in s.menu.options if o.stored_bytes), default=1)
    unit = max(smallest, problem.cap_bytes * problem.base_ns // LARGEST_OBJECTIVE)
    return unit, problem.cap_bytes // unit + problem.graph.config.num_layers + 1


def _step_ns(problem: Problem, answer: Answer, scale: int) -> int:
    return 0 if answer.bound == -float("inf") else problem.base_ns + int(answer.bound // scale)


def _variables(problem: Problem, model: cp_model.CpModel, shortlists: list[list[int]]) -> Variables:
    variables = Variables(model, problem.stretches, shortlists, problem.heads, problem.head_weight)
    OneOptionPerLayer().post(model, variables)
    ResidentReadAgain().post(model, variables)
    SegmentsAreStreamed().post(model, variables)
    problem.flash_keeps_up.post(model, variables)
    return variables


def _within_flash(problem: Problem, plans: Sequence[Uniform]) -> list[Uniform]:
    flash = problem.flash_keeps_up
    return [p for p in plans if p.stored <= flash.cap_bytes and p.store_ns <= flash.store_ns and p.load_ns <= flash.load_ns]


def _cheapest(reduced_ns: Floats, count: int) -> list[int]:
    """Numbers of the options that cost least at a bound's prices."""
    order: list[int] = np.argsort(reduced_ns, kind="stable")[:count].tolist()
    return order


def _smallest(menu: Menu) -> list[int]:
    """Numbers of the options that no other equals or betters in bytes kept, bytes stored and peak:
    where room is short these decide.
    """
    found: list[int] = []
    order = sorted(range(len(menu.options)), key=lambda m: (menu.options[m].sizes, menu.options[m].recompute_ns))
    for m in order:
        sizes = menu.options[m].sizes
        span = menu.options[m].layers
        alike = [menu.options[other].sizes for other in found if menu.options[other].layers == span]
        if not any(all(a <= b for a, b in zip(other, sizes, strict=True)) for other in alike):
            found.append(m)
    return found


def _union_of(*lists: Sequence[int]) -> list[int]:
    return sorted({number for numbers in lists for number in numbers})


def _union(lists: Sequence[Sequence[int]], problem: Problem, start: Uniform | None) -> list[list[int]]:
    """A shortlist for every stretch: its menu's, and the option that the search starts from."""
    by_menu = dict(zip(map(id, distinct_menus(problem.stretches)), lists, strict=True))
    return [
        _union_of(by_menu[id(stretch.menu)], [start.choice[id(stretch.menu)]] if start else []) for stretch in problem.stretches
    ]


def _recipe(problem: Problem, variables: Variables, solver: cp_model.CpSolver) -> Recipe:
    """Read the answer: each layer's option in the layer's own names, resident weights, and the end of the stream kept."""
    saving: dict[TensorId, Saving] = {layer_inputs(problem.graph)[-1]: Saving.KEEP}
    unpacking: dict[WeightId, Unpacking] = {}
    for number, stretch in enumerate(problem.stretches):
        counts = [solver.value(count) for count in variables.count[number]]
        taken = [option for option, count in zip(variables.options[number], counts, strict=True) for _ in range(count)]
        lowest = accumulate((option.layers for option in taken), initial=0)
        for at, option in zip(lowest, taken, strict=False):
            saved, held = relabel(option, stretch.menu.source, stretch.layers[at])
            saving |= saved
            unpacking |= dict.fromkeys(held, Unpacking.HOLD)
        for item, count in zip(stretch.menu.holdables, variables.resident[number], strict=True):
            weights = _most_read(stretch, item.linear, taken)[: solver.value(count)]
            unpacking |= dict.fromkeys(weights, Unpacking.RESIDENT)
    if variables.head_weight and solver.value(variables.head_resident):
        head = next(op for op in problem.graph.ops if op.kind == "head")
        unpacking[head.weights[0]] = Unpacking.RESIDENT
    tile = next(head.tile for head, chosen in zip(variables.heads, variables.head, strict=True) if solver.boolean_value(chosen))
    return Recipe(saving=saving, unpacking=unpacking, head_tile=tile)


def _most_read(stretch: Stretch, linear: str, taken: Sequence[Option]) -> list[WeightId]:
    """A stretch's weights called `linear`, those first that their layer's option reads again, those of segments last."""
    by_layer = [option for option in taken for _ in range(option.layers)]
    again = [any(linear_of(read) == linear for read in option.again) for option in by_layer]
    order = sorted(range(len(by_layer)), key=lambda at: (by_layer[at].layers, not again[at]))
    return [stretch.weight(at, linear) for at in order]
