"""Place options over the chain with CP-SAT: first what is cheapest at the bound's prices, then all that may still be better.

The class that placement chooses from: each activation saved or recomputed within its own layer (or segment of layers), each weight
streamed, held from recomputation to backward or resident, first computations in the graph's order.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from ortools.sat.python import cp_model

from mebp.errors import NoPlanInTime
from mebp.models.graph import TensorId, WeightId
from mebp.planner.bound import Bound, Floats, distinct_menus
from mebp.planner.chain import Menu, Stretch, linear_of
from mebp.planner.hint import Start, hint, uniform_plans
from mebp.planner.menu import Option, relabel
from mebp.planner.objective import extra_time_ns, written_units
from mebp.planner.problem import Problem
from mebp.planner.recipe import Recipe, Saving, Unpacking, layer_inputs
from mebp.planner.rules import FitsTheArena, OneOptionPerLayer, ResidentReadAgain, SegmentsAreStreamed
from mebp.planner.search import Answer, Effort, search
from mebp.planner.variables import RUNNING_SUM, Variables

FIRST_LOOK = 24  # options a menu in the first round, cheapest at the bound's prices
MOST_OPTIONS = 160  # options a menu in the second round; where more are open, the bound at prices stands
FIRST_SHARE = 0.1  # of the time, to find any plan where none is known to start from
LARGEST_OBJECTIVE = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A placement: the recipe, its time with no waits but those at the head, the bound of its class.

    `values` are its variables by name.
    """

    recipe: Recipe
    values: Mapping[str, int]
    model_ns: int
    bound_ns: int


def place(problem: Problem, room: int, effort: Effort) -> Placed | None:
    """Two rounds: the cheapest options at the bound's prices, then all that can still be part of a better plan."""
    relaxations = problem.relaxations(room)
    if room <= 0 or not all(relaxation.feasible for relaxation in relaxations):
        return None
    bounds = [relaxation.best() for relaxation in relaxations]
    bound_ns = max(bound.bound_ns for bound in bounds)
    start = min(starts(problem, room), key=lambda plan: (plan.extra_ns, plan.stored, plan.room), default=None)
    first = [
        _union_of(smallest(menu), *(_cheapest(bound.reduced_ns[i], FIRST_LOOK) for bound in bounds))
        for i, menu in enumerate(distinct_menus(problem.stretches))
    ]
    looked = _search(problem, room, effort, shortlists_of(first, problem, start), start, bound_ns)
    if looked is None or looked.model_ns <= bound_ns or effort.stop.asked:
        return looked and replace(looked, bound_ns=min(bound_ns, looked.model_ns))
    still = [_still_open(bounds, i, looked.model_ns) for i in range(len(first))]
    shortlists = [
        _union_of(_cheapest(bounds[0].reduced_ns[i], MOST_OPTIONS), first[i]) if len(options) > MOST_OPTIONS else options
        for i, options in enumerate(still)
    ]
    try:
        final = _search(problem, room, effort, shortlists_of(shortlists, problem, start), looked, bound_ns)
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
    effort: Effort,
    shortlists: list[list[int]],
    start: Start | Placed | None,
    bound_ns: int,
) -> Placed | None:
    model = cp_model.CpModel()
    variables = variables_of(problem, model, shortlists)
    taken = model.new_int_var(0, max(room, most_room(problem)), "room") if start is None else room
    FitsTheArena(room=taken).post(model, variables)
    match start:
        case Start():
            hint(model, variables, start, room - start.room)
        case Placed():
            _hint_values(model, start.values)
        case None:
            _hint_least(model, taken, room, effort)
            model.add(taken <= room)
    unit, scale = _tie_break(problem)
    model.minimize(extra_time_ns(variables) * scale + written_units(variables, unit))

    def watch(objective: float, proven: float) -> None:
        if effort.progress:
            effort.progress(problem.base_ns + int(objective // scale), max(bound_ns, problem.base_ns + int(proven // scale)))

    answer = search(model, effort, watch, share=0.5)
    if answer is None:
        return None
    return Placed(
        recipe=recipe_of(problem, variables, answer.solver),
        values=_values(model, answer),
        model_ns=problem.base_ns + round(answer.solver.objective_value) // scale,
        bound_ns=_step_ns(problem, answer, scale),
    )


def most_room(problem: Problem) -> int:
    """Bytes of arena that no plan exceeds but by what is resident."""
    layers = sum(max(o.kept_bytes + o.peak for o in s.menu.options) * len(s.layers) for s in problem.stretches)
    return layers + max(head.peak for head in problem.heads)


def _hint_least(model: cp_model.CpModel, taken: cp_model.IntVar, room: int, effort: Effort) -> None:
    """Hint a plan that fits `room`, found by looking for nothing but less room taken: better than to begin with no plan at all."""
    model.minimize(taken)
    with suppress(NoPlanInTime):
        answer = search(model, effort, lambda objective, _: objective <= room, share=FIRST_SHARE)
        if answer is not None:  # else flash cannot take what every plan writes
            _hint_values(model, _values(model, answer))


def _hint_values(model: cp_model.CpModel, values: Mapping[str, int]) -> None:
    """Hint the values of variables by name; what they do not name is not taken."""
    for index, variable in enumerate(model.proto.variables):
        if RUNNING_SUM not in variable.name:  # these follow from the others
            model.add_hint(model.get_int_var_from_proto_index(index), values.get(variable.name, 0))


def _values(model: cp_model.CpModel, answer: Answer) -> dict[str, int]:
    return dict(zip((variable.name for variable in model.proto.variables), answer.solver.response_proto.solution, strict=True))


def _tie_break(problem: Problem) -> tuple[int, int]:
    """(bytes of a unit written, what a nanosecond counts against one): time first, then writes, in 62 bits."""
    smallest = min((o.stored_bytes for s in problem.stretches for o in s.menu.options if o.stored_bytes), default=1)
    unit = max(smallest, problem.cap_bytes * problem.base_ns // LARGEST_OBJECTIVE)
    return unit, problem.cap_bytes // unit + problem.graph.config.num_layers + 1


def _step_ns(problem: Problem, answer: Answer, scale: int) -> int:
    return 0 if answer.bound == -float("inf") else problem.base_ns + int(answer.bound // scale)


def variables_of(problem: Problem, model: cp_model.CpModel, shortlists: list[list[int]]) -> Variables:
    variables = Variables(model, problem.stretches, shortlists, problem.heads, problem.head_weight)
    OneOptionPerLayer().post(model, variables)
    ResidentReadAgain().post(model, variables)
    SegmentsAreStreamed().post(model, variables)
    problem.flash_keeps_up.post(model, variables)
    return variables


def starts(problem: Problem, room: int | None = None) -> list[Start]:
    """Plans to start from that flash can take and that fit `room`, if that is limited."""
    flash = problem.flash_keeps_up
    plans = uniform_plans(problem.stretches, problem.heads)
    kept_up = (p for p in plans if p.stored <= flash.cap_bytes and p.store_ns <= flash.store_ns and p.load_ns <= flash.load_ns)
    return [plan for plan in kept_up if room is None or plan.room <= room]


def _cheapest(reduced_ns: Floats, count: int) -> list[int]:
    """Numbers of the options that cost least at a bound's prices."""
    order: list[int] = np.argsort(reduced_ns, kind="stable")[:count].tolist()
    return order


def smallest(menu: Menu) -> list[int]:
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


def shortlists_of(lists: Sequence[Sequence[int]], problem: Problem, start: Start | None) -> list[list[int]]:
    """A shortlist for every stretch: its menu's, and the option that the search starts from."""
    by_menu = dict(zip(map(id, distinct_menus(problem.stretches)), lists, strict=True))
    return [
        _union_of(by_menu[id(stretch.menu)], [start.choice[number]] if start else [])
        for number, stretch in enumerate(problem.stretches)
    ]


def recipe_of(problem: Problem, variables: Variables, solver: cp_model.CpSolver) -> Recipe:
    """Read the answer: each layer's option in the layer's own names, resident weights, and the end of the stream kept."""
    saving: dict[TensorId, Saving] = {layer_inputs(problem.graph)[-1]: Saving.KEEP}
    unpacking = dict.fromkeys(problem.cost.ahead, Unpacking.AHEAD)
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
