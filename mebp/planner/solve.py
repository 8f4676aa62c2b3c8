"""Find the plan: build the placement model, solve it for time or for the least room, write the answer out as a plan.

The model holds for plans that save or recompute each activation within its own layer, stream or hold each weight, and run
first computations in the graph's order; a bound says no more than that.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from mebp.errors import InfeasibleBudget, InputError, NoPlanInTime
from mebp.models.graph import Graph, TensorId, WeightId
from mebp.models.kind import align
from mebp.plan import Plan, SolverFacts
from mebp.planner.budget import arena_budget, outside_arena
from mebp.planner.hint import Uniform, hint_fastest, hint_smallest, uniform_plans
from mebp.planner.lower import live_profile, lower
from mebp.planner.menu import Layer, Option, layers, menu, relabel
from mebp.planner.objective import extra_time_ns, written_units
from mebp.planner.recipe import Recipe, Saving, Unpacking, head_tile, layer_inputs
from mebp.planner.rules import FitsTheArena, FlashKeepsUp, NothingResident, OneOptionPerLayer, ResidentReadAgain
from mebp.planner.schedule import schedule
from mebp.planner.variables import Holdable, LayerClass, Variables, layer_class, linear_of
from mebp.sim.cost import CostModel
from mebp.sim.device import Device

SCOPE = "layer-local saving, op order fixed, weights streamed, held or resident, stores hidden behind forward, memory of interleaved layer classes taken at its worst"
TIGHTENINGS = 6
LONGEST_STEP_NS = 10**15
HINT_S = 2.0  # wall seconds for completing a hint, which is given whole
LARGEST_OBJECTIVE = 2**60

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long the solver may search: deterministic seconds (repeatable), wall seconds as a backstop.

    `gap`, a part of the step time, is how near to its bound it may stop.
    """

    deterministic_s: float = 0.3
    wall_s: float = 20.0
    seed: int = 0
    gap: float = 5e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A graph on a device with the menus of its layers, ready to be placed under any budget."""

    graph: Graph
    device: Device
    cost: CostModel
    tile: int
    classes: list[LayerClass]
    head_peak: int
    base_ns: int
    forward_ns: int


def pose(graph: Graph, device: Device) -> Problem:
    """Work out the menus: one exact model a distinct layer, shared by the layers of its class."""
    cost = CostModel(graph, device)
    tile = head_tile(graph)
    times = {op.id: cost.op_ns(op, streamed=bool(op.weights), tile=tile if op.kind == "head" else 0) for op in graph.ops}
    if sum(times.values()) > LONGEST_STEP_NS:
        days = sum(times.values()) / 86_400e9
        raise InputError(f"a step would take {days:.3g} days on {device.name}: too long to plan; check the device's numbers")
    alike: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers(graph, cost):
        alike.setdefault(layer.shape, []).append(layer)
    return Problem(
        graph=graph,
        device=device,
        cost=cost,
        tile=tile,
        classes=[layer_class(group, menu(graph, cost, group[0], tile)) for group in alike.values()],
        head_peak=_head_peak(graph, tile),
        base_ns=sum(times.values()),
        forward_ns=sum(times[op.id] for op in graph.ops if not op.backward),
    )


def least_plan(problem: Problem, budget_bytes: int, limits: Limits) -> Plan:
    """The plan with the least arena that the search finds: nothing of its class is known to fit a smaller budget."""
    model, variables = _model(problem)
    ceiling = problem.head_peak + sum(max(o.kept_bytes + o.peak for o in c.options) * len(c.layers) for c in problem.classes)
    floor = max(problem.head_peak, *(min(o.peak for o in c.options) for c in problem.classes))
    room = model.new_int_var(floor, ceiling, "room")
    FitsTheArena(room=room, head_peak=problem.head_peak).post(model, variables)
    NothingResident().post(model, variables)
    hint_smallest(model, variables, _startable(problem, variables), room)
    model.minimize(room)
    answer = _search(model, limits)
    assert answer is not None, "with unbounded room some plan fits"
    recipe = _recipe(problem, variables, answer.solver)
    return lower(problem.graph, problem.device, recipe, name="least", budget_bytes=budget_bytes)


def solve(problem: Problem, budget_bytes: int, limits: Limits, progress: Progress | None = None) -> Plan:
    """The fastest plan found under `budget_bytes` of footprint; raises InfeasibleBudget if none is.

    Packing may need a little more than the live bytes that the model bounds: then the room is tightened and solved again.
    """
    room = arena_budget(problem.graph, problem.device, budget_bytes)
    allowed, first = room, None
    for _ in range(TIGHTENINGS):
        found = _solve_once(problem, allowed, limits, progress)
        if found is None:
            break
        recipe, facts = found
        first = first or facts  # its bound holds for the whole room, later ones for less of it
        facts = _against(facts, first.bound_ns)
        plan = lower(problem.graph, problem.device, recipe, name="solved", budget_bytes=budget_bytes, solver=facts)
        if plan.arena_bytes <= room:
            return plan
        allowed -= 3 * (plan.arena_bytes - room) // 2 + room // 1000
    least = outside_arena(problem.graph, problem.device) + least_plan(problem, budget_bytes, limits).arena_bytes
    raise InfeasibleBudget(f"no plan found within {budget_bytes} bytes: one of {least} exists", budget_bytes, least)


def _against(facts: SolverFacts, bound_ns: int) -> SolverFacts:
    """The same answer measured against another bound."""
    gap = max(0.0, 1 - bound_ns / facts.objective_ns)
    return replace(facts, bound_ns=bound_ns, gap=gap, status="feasible" if gap > 0 else "optimal")


def _solve_once(problem: Problem, room: int, limits: Limits, progress: Progress | None) -> tuple[Recipe, SolverFacts] | None:
    if room <= 0:
        return None
    model, variables = _model(problem)
    FitsTheArena(room=room, head_peak=problem.head_peak).post(model, variables)
    hint_fastest(model, variables, _startable(problem, variables), room)
    cap = int(problem.device.runtime.flash_write_cap_bytes)
    smallest = min((o.stored_bytes for c in problem.classes for o in c.options if o.stored_bytes), default=1)
    unit = max(smallest, cap * problem.base_ns // LARGEST_OBJECTIVE)
    scale = cap // unit + problem.graph.config.num_layers + 1
    model.minimize(extra_time_ns(variables) * scale + written_units(variables, unit))
    report = _Report(lambda value: _step_ns(problem, value, scale), progress) if progress else None
    answer = _search(model, limits, report, absolute_gap=limits.gap * problem.base_ns * scale)
    if answer is None:
        return None
    return _recipe(problem, variables, answer.solver), _facts(problem, answer, scale)


def _model(problem: Problem) -> tuple[cp_model.CpModel, Variables]:
    model = cp_model.CpModel()
    variables = Variables(model, problem.graph, problem.cost, problem.classes)
    OneOptionPerLayer().post(model, variables)
    ResidentReadAgain().post(model, variables)
    cap = int(problem.device.runtime.flash_write_cap_bytes)
    FlashKeepsUp(cap_bytes=cap, time_ns=problem.forward_ns).post(model, variables)
    return model, variables


def _startable(problem: Problem, variables: Variables) -> list[Uniform]:
    """Uniform plans that keep within the flash rules."""
    cap = problem.device.runtime.flash_write_cap_bytes
    plans = uniform_plans(variables, problem.head_peak)
    return [plan for plan in plans if plan.stored <= cap and plan.flash_ns <= problem.forward_ns]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A solver that holds a solution, and the bound that the search proved."""

    solver: cp_model.CpSolver
    bound: float


def _search(model: cp_model.CpModel, limits: Limits, report: "_Report | None" = None, absolute_gap: float = 0.0) -> _Answer | None:
    """Run CP-SAT; None where nothing fits. Out of time with nothing found, it falls back on the hint, else NoPlanInTime."""
    solver = _solver(limits)
    solver.parameters.max_deterministic_time = limits.deterministic_s
    solver.parameters.max_time_in_seconds = limits.wall_s
    solver.parameters.absolute_gap_limit = absolute_gap
    status = solver.solve(model, report)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return _Answer(solver=solver, bound=solver.best_objective_bound)
    if status == cp_model.INFEASIBLE:
        return None
    hinted = _solver(limits)
    hinted.parameters.fix_variables_to_their_hinted_value = True
    hinted.parameters.max_time_in_seconds = min(limits.wall_s, HINT_S)
    if hinted.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return _Answer(solver=hinted, bound=-float("inf"))
    raise NoPlanInTime(f"the solver found no plan in {limits.wall_s:g} s: raise --time-limit or the budget")


def _solver(limits: Limits) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = limits.seed
    solver.parameters.catch_sigint_signal = False  # Ctrl-C is the caller's: a search cut short must not pass for a finished one
    return solver


class _Report(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # ortools has no types here
    """Hands every better plan's step time and bound to whoever shows progress."""

    def __init__(self, step_ns: Callable[[float], int], progress: Progress) -> None:
        super().__init__()
        self._step_ns = step_ns
        self._progress = progress

    def on_solution_callback(self) -> None:
        self._progress(self._step_ns(self.objective_value), self._step_ns(self.best_objective_bound))


def _facts(problem: Problem, answer: _Answer, scale: int) -> SolverFacts:
    objective = _step_ns(problem, answer.solver.objective_value, scale)
    bound = max(0, _step_ns(problem, answer.bound, scale))
    return SolverFacts(
        status="optimal" if bound >= objective else "feasible",
        objective_ns=objective,
        bound_ns=min(bound, objective),
        gap=max(0.0, (objective - bound) / objective),
        wall_s=answer.solver.wall_time,
        scope=SCOPE,
    )


def _step_ns(problem: Problem, value: float, scale: int) -> int:
    """The step time behind an objective, which counts time x scale + units written; never below 0."""
    return problem.base_ns + int(max(value, -float(problem.base_ns) * scale) // scale)


def _recipe(problem: Problem, variables: Variables, solver: cp_model.CpSolver) -> Recipe:
    """Read the answer: each layer's option in the layer's own names, resident weights, and the end of the stream kept."""
    saving: dict[TensorId, Saving] = {layer_inputs(problem.graph)[-1]: Saving.KEEP}
    unpacking: dict[WeightId, Unpacking] = {}
    for number, layer_class in enumerate(problem.classes):
        counts = [solver.value(count) for count in variables.count[number]]
        taken = [option for option, count in zip(layer_class.options, counts, strict=True) for _ in range(count)]
        for layer, option in zip(layer_class.layers, taken, strict=True):
            saved, held = relabel(option, layer_class.layers[0], layer)
            saving |= saved
            unpacking |= dict.fromkeys(held, Unpacking.HOLD)
        for item, count in zip(variables.holdable[number], variables.resident[number], strict=True):
            unpacking |= dict.fromkeys(_most_read(item, taken)[: solver.value(count)], Unpacking.RESIDENT)
    if variables.head and solver.value(variables.head_resident):
        unpacking[variables.head.weights[0]] = Unpacking.RESIDENT
    return Recipe(saving=saving, unpacking=unpacking, head_tile=problem.tile)


def _head_peak(graph: Graph, tile: int) -> int:
    """Live bytes at the head beside what layers keep: the stream's end, its norm, the head, and the norm's backward."""
    last = layer_inputs(graph)[-1]
    ops = [op for op in graph.ops if op.kind == "head" or op.id.startswith("final_norm")]
    recipe = Recipe(saving={last: Saving.KEEP}, head_tile=tile)
    return align(graph.tensors[last].nbytes) + max(live_profile(schedule(graph, recipe, ops, frozenset({last})), graph, recipe))


def _most_read(item: Holdable, taken: list[Option]) -> list[WeightId]:
    """The weights of `item`, those first that their layer's option reads again."""
    again = [any(linear_of(read) == item.linear for read in option.again) for option in taken]
    return [weight for _, weight in sorted(zip(again, item.weights, strict=True), key=lambda pair: not pair[0])]
