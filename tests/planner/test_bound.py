"""The bounds and the placement against slow, sure methods: a dynamic program over kept bytes, and every saved set of a small
chain.
"""

import random
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from mebp.models.build import build_graph
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.tensor import TensorId
from mebp.planner.effort import Effort
from mebp.planner.layer.chain import Stretch, make_menu
from mebp.planner.layer.option import Option
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking, backward_reads, head_tile
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.solver.bound import Limited, Prices, Relaxation
from mebp.planner.solver.objective import extra_time_ns
from mebp.planner.solver.rules import FitsTheArena, FlashKeepsUp, OneOptionPerLayer
from mebp.planner.solver.variables import HeadOption, Variables
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena
from mebp.sim.profile import override
from mebp.sim.simulate import simulate
from tests.conftest import small_config, small_workload
from tests.plans import leanest, posed, solved

HEAD = HeadOption(tile=16, peak=3, duration_ns=0)


def random_option(draw: random.Random) -> Option:
    kept, again_ns = draw.randint(1, 9), draw.randint(0, 40)
    return Option(
        saving={},
        shared=frozenset(),
        read_again=frozenset(),
        input_bytes=1,
        kept_bytes=kept,
        stored_bytes=draw.choice((0, 0, 2, 5)),
        store_ns=0,
        load_ns=0,
        recompute_ns=again_ns,
        once_ns=again_ns,
        forward_peak=0,
        backward_peak=kept + draw.randint(0, 9),
    )


def random_chain(seed: int) -> list[Stretch]:
    """A heterogeneous chain: every layer has a menu of its own."""
    draw = random.Random(seed)
    menus = [make_menu(n, SimpleNamespace(number=n, input="x"), [random_option(draw) for _ in range(4)]) for n in range(7)]  # type: ignore[arg-type]
    return [Stretch(layers=(menu.source,), menu=menu) for menu in menus]


def dynamic_program(chain: list[Stretch], room: int, cap: int) -> int | None:
    """Least recomputation, over (bytes kept, bytes stored) after each layer.

    The optimal persistent checkpointing of heterogeneous chains (Beaumont et al., 2019, arXiv 1911.13214), with menus for layers.
    """
    best = {(0, 0): 0}
    for stretch in chain:
        after: dict[tuple[int, int], int] = {}
        for ((kept, stored), time), option in product(best.items(), stretch.menu.options):
            state = (kept + option.kept_bytes, stored + option.stored_bytes)
            if kept + option.peak <= room and state[1] <= cap:
                after[state] = min(after.get(state, 10**9), time + option.recompute_ns)
        best = after
    return min((time for (kept, _), time in best.items() if kept + HEAD.peak <= room), default=None)


@pytest.mark.parametrize("seed", range(25))
def test_placement_equals_the_dynamic_program_on_heterogeneous_chains(seed: int) -> None:
    chain, draw = random_chain(seed), random.Random(seed)
    room, cap = draw.randint(15, 50), draw.choice((0, 4, 12))
    model = cp_model.CpModel()
    variables = Variables(model, chain, [range(4)] * len(chain), [HEAD], None)
    OneOptionPerLayer().post(model, variables)
    FitsTheArena(room=room).post(model, variables)
    FlashKeepsUp(cap_bytes=cap, store_ns=0, load_ns=0).post(model, variables)
    model.minimize(extra_time_ns(variables))
    solver = cp_model.CpSolver()
    found = round(solver.objective_value) if solver.solve(model) == cp_model.OPTIMAL else None
    assert found == dynamic_program(chain, room, cap)


@pytest.mark.parametrize("seed", range(25))
def test_the_bound_is_below_the_optimum_and_fixing_by_it_loses_nothing(seed: int) -> None:
    chain, draw = random_chain(seed), random.Random(seed)
    room, cap = draw.randint(25, 60), draw.choice((0, 4, 12))
    optimum = dynamic_program(chain, room, cap)
    relaxation = Relaxation(chain, [HEAD], None, Limited(room=room, cap=cap, base_ns=0))
    if optimum is None:
        return
    assert relaxation.feasible
    bound = relaxation.best()
    assert bound.bound_ns <= optimum
    kept = [
        make_menu(
            s.menu.number,
            s.menu.source,
            [o for o, cost in zip(s.menu.options, reduced, strict=True) if cost <= optimum - bound.bound_ns],
        )
        for s, reduced in zip(chain, bound.reduced_ns, strict=True)
    ]
    assert dynamic_program([Stretch(layers=(m.source,), menu=m) for m in kept], room, cap) == optimum


def test_no_plan_of_a_small_chain_beats_the_bound_on_all_plans(device: Device) -> None:
    """Every set of layer inputs and feed-forward activations kept, segments of several layers among them."""
    dry = override(device, ["runtime.flash_write_cap_bytes=0"])
    graph = build_graph(small_config(layers=3), small_workload())
    problem = posed(graph, dry)
    inputs = graph.stream
    others = [TensorId(f"{layer}.{name}.out") for layer in range(3) for name in ("glu",)]
    for pattern in product((False, True), repeat=2 + len(others)):
        kept = [tensor for tensor, keep in zip((*inputs[1:-1], *others), pattern, strict=True) if keep]
        recipe = Recipe(saving=dict.fromkeys([inputs[0], inputs[-1], *kept], Saving.KEEP), head_tile=head_tile(graph))
        plan = lower(graph, dry, recipe, name="x", budget_bytes=0)
        assert problem.whole_bound_ns(plan.arena_bytes) <= simulate(plan, graph, dry).step_ns


@pytest.mark.parametrize("waits", [False, True])
def test_no_plan_that_stores_beats_the_bound_on_all_plans(waits: bool, device: Device) -> None:
    """Every split of the last layer's activations into kept and stored, finer than any menu offers."""
    graph = build_graph(small_config(layers=2), small_workload())
    problem = posed(graph, device)
    inputs = graph.stream
    last = [tensor for tensor in sorted(backward_reads(graph)) if tensor.startswith("1.") and tensor not in inputs]
    below = dict.fromkeys((tensor for tensor in backward_reads(graph) if tensor.startswith("0.")), Saving.KEEP)
    for pattern in product((Saving.KEEP, Saving.STORE), repeat=min(7, len(last))):
        choice = dict(zip(last, pattern, strict=False)) | dict.fromkeys(last[len(pattern) :], Saving.STORE)
        recipe = Recipe(saving=below | dict.fromkeys(inputs, Saving.KEEP) | choice, head_tile=head_tile(graph))
        plan = lower(graph, device, recipe, name="x", budget_bytes=0, waits=waits)
        assert problem.whole_bound_ns(plan.arena_bytes) <= simulate(plan, graph, device).step_ns


@pytest.mark.parametrize("written", [0.0, 1e-3])
def test_the_best_price_is_the_best_of_a_fine_scan(written: float, small_graph: Graph, device: Device) -> None:
    problem = posed(small_graph, device)
    room = leanest(problem, Effort()).arena_bytes * 3 // 2
    relaxation = problem.relaxations(room)[0]
    best = relaxation._best_memory(written)
    scan = [relaxation._at(Prices(memory=price, written=written))[0] for price in np.linspace(0, 4 * best.memory + 1, 4001)]
    assert relaxation._at(best)[0] >= max(scan) * (1 - 1e-9)


def test_a_model_of_one_layer_is_planned(device: Device) -> None:
    graph = build_graph(small_config(layers=1), small_workload())
    plan = solved(posed(graph, device), 10**9, Effort())
    assert simulate(plan, graph, device).recompute_ns == 0


BETTER = (
    "hardware.product_flops",
    "runtime.unpack_rate",
    "hardware.memory_bandwidth",
    "hardware.flash_write",
    "hardware.flash_read",
    "runtime.flash_write_cap_bytes",
)
STEP_NOISE, LEAST_NOISE = 1.01, 1.05  # waits for flash and packing are looked at by heuristics, and may differ by so much


@pytest.mark.slow
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    entries=st.sets(st.sampled_from(BETTER), min_size=1),
    factor=st.sampled_from((1.1, 2.0, 7.0)),
    spare=st.sampled_from((1.3, 2.0, 8.0)),
)
@example(entries=set(BETTER), factor=7.0, spare=1.3)  # faster than its class: loads start before the head has ended
def test_a_better_device_is_never_slower_and_needs_no_more(
    entries: set[str], factor: float, spare: float, qwen_graph: Graph, device: Device
) -> None:
    """More of anything, then 5% more memory."""
    better = override(device, [f"{entry}={factor * device.value(entry)}" for entry in sorted(entries)])
    before, after = (posed(qwen_graph, d) for d in (device, better))
    limits = Effort(deterministic_s=0.3)
    least = [leanest(problem, limits).arena_bytes for problem in (before, after)]
    assert least[1] <= least[0] * LEAST_NOISE
    outside = outside_arena(qwen_graph, device)
    budget, more = outside + int(spare * least[0]), outside + int(1.05 * spare * least[0])
    steps = [
        simulate(solved(problem, nbytes, limits), qwen_graph, problem.device).step_ns
        for problem, nbytes in ((before, budget), (after, budget), (after, more))
    ]
    assert all(later <= earlier * STEP_NOISE for earlier, later in pairwise(steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", ["hardware.product_flops", "runtime.unpack_rate", "hardware.memory_bandwidth", "hardware.flash_write"]
)
def test_twice_of_one_thing_is_never_slower_and_needs_no_more(entry: str, device: Device) -> None:
    """The same without any tolerance, on a small model."""
    graph = build_graph(small_config(), small_workload())
    better = override(device, [f"{entry}={2 * device.value(entry)}"])
    least = [leanest(posed(graph, d), Effort()).arena_bytes for d in (device, better)]
    assert least[1] <= least[0]
    budget = outside_arena(graph, device) + 2 * least[0]
    steps = [simulate(solved(posed(graph, d), budget, Effort()), graph, d).step_ns for d in (device, better)]
    assert steps[1] <= steps[0]


@pytest.mark.parametrize("concurrent", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cached", [0, pytest.param(10**9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weights", ["int4-g32", "bf16"])
def test_no_recipe_beats_the_bound_on_all_plans(weights: str, cached: int, concurrent: int, device: Device) -> None:
    """Every fixed strategy's saving, with its weights read every way, the head by tiles or whole, with and without page cache."""
    slow_unpacking = ["runtime.unpack_rate=3e7", "hardware.flash_read=1e9"]
    profile = override(device, [f"runtime.unpack_beside={concurrent}", f"hardware.page_cache_bytes={cached}", *slow_unpacking])
    graph = build_graph(small_config(), small_workload(weights=weight_formats(weights)))
    problem = posed(graph, profile)
    layers = [weight.id for weight in graph.weights.values() if weight.layer is not None]
    for strategy in STRATEGIES.values():
        if not strategy.exact:
            continue
        recipe = strategy.recipe(graph, profile, 10**9)
        for unpacking in Unpacking:
            chosen = dict.fromkeys(graph.weights if unpacking is Unpacking.RESIDENT else layers, unpacking)
            for tile in (recipe.head_tile, graph.config.vocab):
                other = replace(recipe, unpacking=chosen, head_tile=tile)
                plan = lower(graph, profile, other, name="any", budget_bytes=0)
                step_ns = simulate(plan, graph, profile).step_ns
                assert problem.whole_bound_ns(plan.arena_bytes) <= step_ns, (strategy.name, unpacking, tile)
