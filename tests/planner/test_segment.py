"""Segments: what they take is what their written plan takes, placement finds the best mix of them, and they lower the least
budget.
"""

import random
from dataclasses import replace
from itertools import product

import pytest
from ortools.sat.python import cp_model

from mebp.check import check
from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.models.tensor import TensorId
from mebp.planner.effort import Effort
from mebp.planner.layer.chain import Menu, Stretch, make_menu
from mebp.planner.layer.menu import menu_options
from mebp.planner.layer.option import Option
from mebp.planner.layer.segment import segments
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.solver.bound import Limited, Relaxation
from mebp.planner.solver.objective import extra_time_ns
from mebp.planner.solver.rules import FitsTheArena, OneOptionPerLayer
from mebp.planner.solver.variables import HeadOption, Variables
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.profile import override
from mebp.sim.simulate import simulate
from tests.conftest import small_config, small_workload
from tests.planner.test_bound import random_option
from tests.plans import leanest, posed, solved

LAYERS = 9
QUICK = Effort(deterministic_s=0.3)


@pytest.fixture
def dry(device: Device) -> Device:
    """A phone that may not write to flash at all."""
    return override(device, ["runtime.flash_write_cap_bytes=0"])


@pytest.fixture
def long_graph() -> Graph:
    """More layers than a step has other memory for."""
    return build_graph(small_config(layers=LAYERS), small_workload(seq_len=256))


def segment_options(graph: Graph, device: Device) -> list[Option]:
    cost = CostModel(graph, device)
    alike = graph.layers[1:]
    return segments(graph, cost, alike, menu_options(graph, cost, alike[0]))


def test_a_segment_takes_the_time_that_its_plan_recomputes(long_graph: Graph, dry: Device) -> None:
    """Layers 1 and up in one segment after a first layer that keeps all: recomputation is the segment's, to the nanosecond."""
    keep_all = STRATEGIES["keep-all"].recipe(long_graph, dry, 0)
    options = [option for option in segment_options(long_graph, dry) if option.layers == LAYERS - 1]
    assert options
    for option in options:
        first = {tensor: choice for tensor, choice in keep_all.saving.items() if tensor.startswith(("0.", "embed"))}
        saving = dict(option.saving)
        ends = {long_graph.stream[1]: Saving.KEEP, long_graph.stream[-1]: Saving.KEEP}
        plan = lower(long_graph, dry, Recipe(saving=first | saving | ends, head_tile=16), name="x", budget_bytes=0)
        assert simulate(plan, long_graph, dry).recompute_ns == option.recompute_ns


def test_dropping_what_is_made_on_the_way_trades_time_for_memory(long_graph: Graph, dry: Device) -> None:
    longest = [option for option in segment_options(long_graph, dry) if option.layers == LAYERS - 1]
    quick, small = min(longest, key=lambda o: o.recompute_ns), min(longest, key=lambda o: o.peak)
    assert small.peak < quick.peak
    assert quick.recompute_ns < small.recompute_ns
    assert Saving.TRANSIENT in small.saving.values()
    assert Saving.TRANSIENT not in quick.saving.values()


def test_segments_lower_the_least_budget_where_nothing_may_be_written(long_graph: Graph, dry: Device) -> None:
    plan = leanest(posed(long_graph, dry), QUICK)
    assert check(plan, long_graph).peak_bytes == plan.arena_bytes
    fixed = min(STRATEGIES[name].plan(long_graph, dry, 0).arena_bytes for name in ("checkpoint-1", "checkpoint-2", "sqrt"))
    assert plan.arena_bytes < 0.95 * fixed
    assert simulate(plan, long_graph, dry).flash_written_bytes == 0


def test_the_solver_agrees_with_the_simulator_on_segments(long_graph: Graph, dry: Device) -> None:
    problem = posed(long_graph, dry)
    budget = simulate(leanest(problem, QUICK), long_graph, dry).peak_bytes * 102 // 100
    plan = solved(problem, budget, QUICK)
    assert plan.solver is not None
    assert plan.solver.model_ns == simulate(plan, long_graph, dry).step_ns
    assert plan.solver.whole_bound_ns <= plan.solver.bound_ns <= plan.solver.objective_ns


def test_phones_that_can_store_every_input_need_none(long_graph: Graph, device: Device) -> None:
    assert all(option.layers == 1 for stretch in posed(long_graph, device).stretches for option in stretch.menu.options)


def random_menu(seed: int) -> Menu:
    draw = random.Random(seed)
    options = [replace(random_option(draw), stored_bytes=0, layers=draw.choice((1, 1, 2, 3))) for _ in range(5)]
    options.append(replace(random_option(draw), stored_bytes=0))
    return make_menu(0, None, options)  # type: ignore[arg-type]


def every_order(menu: Menu, size: int, room: int, head: HeadOption) -> int | None:
    """The least time of any sequence of options that covers `size` layers within `room`."""
    best: int | None = None
    for number in range(1, size + 1):
        for taken in product(menu.options, repeat=number):
            if sum(option.layers for option in taken) != size:
                continue
            kept, fits = 0, True
            for option in taken:
                fits, kept = fits and kept + option.peak <= room, kept + option.kept_bytes
            if fits and kept + head.peak <= room:
                time = sum(option.recompute_ns for option in taken)
                best = time if best is None else min(best, time)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_placement_of_segments_equals_every_sequence_and_the_bounds_stay_below(seed: int) -> None:
    """The order within a stretch (most workspace beyond what is kept first) loses nothing, with segments too."""
    size, head, room = 4, HeadOption(tile=16, peak=3, duration_ns=0), random.Random(seed).randint(12, 32)
    options = random_menu(seed)
    layer = type("L", (), {"number": 0, "input": TensorId("x")})()
    stretch = Stretch(layers=(layer,) * size, menu=replace(options, source=layer))
    model = cp_model.CpModel()
    variables = Variables(model, [stretch], [range(len(options.options))], [head], None)
    OneOptionPerLayer().post(model, variables)
    FitsTheArena(room=room).post(model, variables)
    model.minimize(extra_time_ns(variables))
    solver = cp_model.CpSolver()
    found = round(solver.objective_value) if solver.solve(model) == cp_model.OPTIMAL else None
    expected = every_order(options, size, room, head)
    assert found == expected
    if expected is not None:
        relaxation = Relaxation([stretch], [head], None, Limited(room=room, cap=0, base_ns=0))
        assert relaxation.feasible
        assert relaxation.best().bound_ns <= expected
