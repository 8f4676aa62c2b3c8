"""Place options over the chain with CP-SAT: first what is cheapest at the bound's prices, then all that may still be better.

The class that placement chooses from: each activation saved or recomputed within its own layer (or segment of layers), each weight
streamed, unpacked whole before an op, shared by recomputation and backward, or resident, first computations in the graph's order.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from mebp.errors import NoPlanInTime
from mebp.planner.effort import Effort, Phase
from mebp.planner.layer.chain import Menu
from mebp.planner.recipe.recipe import Recipe
from mebp.planner.solver.bound import Bound, Floats, distinct_menus
from mebp.planner.solver.hint import Start, hint_start, uniform_plans
from mebp.planner.solver.model import Model, most_room
from mebp.planner.solver.problem import Problem
from mebp.planner.solver.search import search

FIRST_LOOK = 24  # options per menu in the first round, cheapest at the bound's prices
MOST_OPTIONS = 160  # options per menu in the second round; where more are open, the bound at prices stands


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A recipe, its time with no waits but those at the head, the bound of its class, and the decisions behind it by name."""

    recipe: Recipe
    values: Mapping[str, int]
    model_ns: int
    bound_ns: int


def place(problem: Problem, room: int, effort: Effort) -> Placement | None:
    """Two rounds: the cheapest options at the bound's prices, then all that can still be part of a better plan."""
    relaxations = problem.relaxations(room)
    if room <= 0 or not all(relaxation.feasible for relaxation in relaxations):
        return None
    bounds = [relaxation.best() for relaxation in relaxations]
    bound_ns = max(bound.bound_ns for bound in bounds)
    start = min(starts(problem, room), key=lambda plan: (plan.extra_ns, plan.stored, plan.room), default=None)
    cheapest = [
        _union_of(smallest(menu), *(_cheapest(bound.reduced_ns[i], FIRST_LOOK) for bound in bounds))
        for i, menu in enumerate(distinct_menus(problem.stretches))
    ]
    first = _round(problem, room, effort, shortlists_of(cheapest, problem, start), start, bound_ns)
    if first is None or first.model_ns <= bound_ns or effort.over:
        return first and replace(first, bound_ns=min(bound_ns, first.model_ns))
    still_open = [_still_open(bounds, i, first.model_ns) for i in range(len(cheapest))]
    better = [
        _union_of(_cheapest(bounds[0].reduced_ns[i], MOST_OPTIONS), cheapest[i]) if len(options) > MOST_OPTIONS else options
        for i, options in enumerate(still_open)
    ]
    second = None
    with suppress(NoPlanInTime):
        second = _round(problem, room, effort, shortlists_of(better, problem, start), first, bound_ns)
    whole_class = all(len(options) <= MOST_OPTIONS for options in still_open)
    return _best_of(first, second, bound_ns, whole_class=whole_class)


def _best_of(first: Placement, second: Placement | None, bound_ns: int, *, whole_class: bool) -> Placement:
    """The better of two rounds. The second round's bound holds for the class where it had every open option."""
    if second is None:
        return replace(first, bound_ns=min(bound_ns, first.model_ns))
    best = first if second.model_ns > first.model_ns else second
    proven = max(bound_ns, min(second.bound_ns, first.model_ns)) if whole_class else bound_ns
    return replace(best, bound_ns=min(proven, best.model_ns))


def _round(
    problem: Problem,
    room: int,
    effort: Effort,
    shortlists: list[list[int]],
    start: Start | Placement | None,
    bound_ns: int,
) -> Placement | None:
    """The best placement of the options in `shortlists`, looked for from `start`."""
    model = Model(problem, shortlists, room if start is not None else (0, max(room, most_room(problem))))
    match start:
        case Start():
            hint_start(model.cp, model.variables, start, room - start.room)
        case Placement():
            model.variables.hint(start.values)
        case None:
            hint_least(model, room, effort)
            model.cp.add(model.room <= room)
    model.minimise_time()

    def watch(objective: float, proven: float) -> None:
        if effort.progress:
            effort.progress(model.step_ns(objective), max(bound_ns, model.step_ns(proven)))

    solution = search(model.cp, effort.of(Phase.ROUND), watch)
    if solution is None:
        return None
    return Placement(
        recipe=model.recipe(solution),
        values=model.values(solution),
        model_ns=model.solved_step_ns(solution),
        bound_ns=model.bound_ns(solution),
    )


def hint_least(model: Model, room: int, effort: Effort) -> None:
    """Hint a plan that fits `room`, found by looking for nothing but less room: better than to begin with no plan at all."""
    model.minimise_room()
    with suppress(NoPlanInTime):
        solution = search(model.cp, effort.of(Phase.START), lambda objective, _: objective <= room)
        if solution is not None:  # else flash cannot take what every plan writes
            model.variables.hint(model.values(solution))


def starts(problem: Problem, room: int | None = None) -> list[Start]:
    """Plans to start from that flash can take and that fit `room`, if that is limited."""
    flash = problem.flash_keeps_up
    plans = uniform_plans(problem.stretches, problem.heads)
    kept_up = (plan for plan in plans if flash.allows(plan.stored, plan.store_ns, plan.load_ns))
    return [plan for plan in kept_up if room is None or plan.room <= room]


def smallest(menu: Menu) -> list[int]:
    """Numbers of the Pareto-optimal options in bytes kept, bytes stored and peak: where room is short these decide."""
    found: list[int] = []
    order = sorted(range(len(menu.options)), key=lambda m: (menu.options[m].sizes, menu.options[m].recompute_ns))
    for m in order:
        sizes = menu.options[m].sizes
        span = menu.options[m].layers
        alike = [menu.options[other].sizes for other in found if menu.options[other].layers == span]
        if not any(all(a <= b for a, b in zip(other, sizes, strict=True)) for other in alike):
            found.append(m)
    return found


def shortlists_of(lists: Sequence[Sequence[int]], problem: Problem, start: Start | None) -> list[list[int]]:
    """A shortlist for every stretch: its menu's (`lists` has one per distinct menu), and the option that the search starts from."""
    by_menu = {menu.number: numbers for menu, numbers in zip(distinct_menus(problem.stretches), lists, strict=True)}
    return [
        _union_of(by_menu[stretch.menu.number], [start.choice[number]] if start else [])
        for number, stretch in enumerate(problem.stretches)
    ]


def _still_open(bounds: Sequence[Bound], menu: int, known_ns: int) -> list[int]:
    """Numbers of the options that may be part of a plan faster than a known one, by every bound."""
    open_by = [bound.reduced_ns[menu] <= known_ns - bound.bound_ns for bound in bounds]
    numbers: list[int] = np.flatnonzero(np.logical_and.reduce(open_by)).tolist()
    return numbers


def _cheapest(reduced_ns: Floats, count: int) -> list[int]:
    """Numbers of the options that cost least at a bound's prices."""
    order: list[int] = np.argsort(reduced_ns, kind="stable")[:count].tolist()
    return order


def _union_of(*lists: Sequence[int]) -> list[int]:
    return sorted({number for numbers in lists for number in numbers})
