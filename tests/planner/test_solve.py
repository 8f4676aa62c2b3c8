"""The solver: within budget, never slower than what fits, agreeing with checker and simulator, equal to brute force on a tiny
chain.
"""

from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mebp.check import check
from mebp.errors import InfeasibleBudget, InputError, NoPlanInTime
from mebp.models.build import build_graph
from mebp.models.catalogue import CATALOGUE, catalogue_model
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.tensor import WeightId
from mebp.models.workload import Lora, Workload
from mebp.plan import Engine
from mebp.planner.effort import Effort, Stop
from mebp.planner.layer.menu import menu_options
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving, head_tile
from mebp.planner.recipe.schedule import Run, schedule
from mebp.planner.solver.problem import pose
from mebp.planner.solver.solve import solve, write_less
from mebp.planner.tradeoff import require_fit, tradeoff
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena
from mebp.sim.profile import override
from mebp.sim.simulate import simulate
from mebp.sim.uncertainty import peak_margin, uncertainty
from tests.conftest import small_config, small_workload
from tests.plans import leanest, posed, solved

QUICK = Effort(deterministic_s=0.2)


def test_an_ample_budget_recomputes_nothing_and_unpacks_nothing_again(small_graph: Graph, device: Device) -> None:
    found = simulate(solved(posed(small_graph, device), 10**9, QUICK), small_graph, device)
    assert found.recompute_ns == 0
    assert found.unpacked_weights == 0


def test_the_least_budget_is_just_feasible(small_graph: Graph, device: Device) -> None:
    problem = posed(small_graph, device)
    least = simulate(leanest(problem, QUICK), small_graph, device).peak_bytes
    plan = solved(problem, least * 101 // 100, QUICK)
    assert simulate(plan, small_graph, device).peak_bytes <= least * 101 // 100


def test_below_the_least_budget_nothing_is_found(small_graph: Graph, device: Device) -> None:
    with pytest.raises(InfeasibleBudget):
        solved(posed(small_graph, device), outside_arena(small_graph, device) + 50_000, QUICK)


@pytest.mark.parametrize("spare_mb", [20, *(pytest.param(mb, marks=pytest.mark.slow) for mb in (60, 150, 600))])
def test_a_solved_plan_is_valid_within_budget_and_no_slower_than_what_fits(
    spare_mb: int, qwen_graph: Graph, device: Device
) -> None:
    budget = outside_arena(qwen_graph, device) + spare_mb * 10**6
    found = tradeoff(qwen_graph, device, budget, QUICK)
    row = require_fit(found)
    assert row.prediction.peak_bytes <= budget
    assert check(row.plan, row.graph).peak_bytes == row.plan.arena_bytes
    assert all(row.prediction.step_ns <= other.prediction.step_ns for other in found.rows if other.fits and other.plan.exact)


def test_solver_and_simulator_agree_where_nothing_waits(qwen_graph: Graph, device: Device) -> None:
    """With the write cap at 0 nothing is stored, one engine does all, and the times are equal to the nanosecond."""
    dry = override(device, ["runtime.flash_write_cap_bytes=0"])
    plan = solved(posed(qwen_graph, dry), 300_000_000, QUICK)
    found = simulate(plan, qwen_graph, dry)
    assert plan.solver is not None
    assert found.flash_written_bytes == 0
    assert found.step_ns == plan.solver.objective_ns
    assert plan.solver.model_ns == plan.solver.objective_ns
    assert plan.solver.whole_bound_ns <= plan.solver.bound_ns <= plan.solver.objective_ns


def test_the_write_cap_is_kept(qwen_graph: Graph, device: Device) -> None:
    capped = override(device, ["runtime.flash_write_cap_bytes=2e7"])
    found = simulate(solved(posed(qwen_graph, capped), 220_000_000, QUICK), qwen_graph, capped)
    assert 0 < found.flash_written_bytes <= 20_000_000


@pytest.mark.slow
def test_the_same_input_gives_the_same_plan(small_graph: Graph, device: Device) -> None:
    budget = outside_arena(small_graph, device) + 700_000
    plans = [solve(pose(small_graph, device), budget, QUICK) for _ in range(2)]
    assert plans[0].instructions == plans[1].instructions


def test_less_memory_never_means_less_time(qwen_graph: Graph, device: Device) -> None:
    problem = posed(qwen_graph, device)
    steps = [simulate(solved(problem, budget, QUICK), qwen_graph, device).step_ns for budget in (10**9, 400_000_000, 200_000_000)]
    assert all(fast <= slow * 1.005 for fast, slow in pairwise(steps))


def test_the_menu_holds_the_best_saved_set_for_every_cap_by_brute_force(device: Device) -> None:
    """All 2^n ways to save the larger activations of one layer: none is smaller and faster than every menu entry."""
    graph = build_graph(small_config(layers=2), small_workload())
    cost, tile = CostModel(graph, device), head_tile(graph)
    layer = graph.layers[1]
    options = menu_options(graph, cost, layer)
    inner = [tensor for op in layer.forward[:-1] for tensor in op.writes.values()]
    chosen = sorted(inner, key=lambda t: -graph.tensors[t].nbytes)[:8]
    for pattern in product((False, True), repeat=len(chosen)):
        saved = [tensor for tensor, keep in zip(chosen, pattern, strict=True) if keep]
        saving = dict.fromkeys([layer.input, *saved], Saving.KEEP)
        recipe = Recipe(saving=saving, head_tile=tile)
        given_ops = (*layer.forward, *layer.backward)
        steps = schedule(graph, recipe, given_ops, frozenset({layer.input, graph.stream_gradient}))  # type: ignore[arg-type]
        time = sum(cost.op_ns(s.op, streamed=s.op.weights) for s in steps if isinstance(s, Run) and s.recompute)
        size = sum(graph.tensors[tensor].nbytes for tensor in saving)
        assert any(o.recompute_ns <= time and o.kept_bytes + o.stored_bytes <= size for o in options)


def test_uniform_choices_by_brute_force_are_never_better(device: Device) -> None:
    """Every way to keep whole layers or only their inputs, on a chain of four: the solver is at least as fast within the room."""
    dry = override(device, ["runtime.flash_write_cap_bytes=0", "runtime.unpack_rate=1e15"])
    graph = build_graph(small_config(layers=4), small_workload())
    reads = {tensor for op in graph.ops if op.backward for tensor in op.reads.values()}
    best: dict[int, int] = {}
    for pattern in product((False, True), repeat=4):
        kept = [
            t
            for t in reads
            if graph.tensors[t].layer is not None and graph.producer[t].layer is not None and pattern[graph.producer[t].layer]
        ]  # type: ignore[index]
        forward = [t for t in kept if not graph.producer[t].backward]
        saving = dict.fromkeys([*graph.stream, *forward], Saving.KEEP)
        plan = lower(graph, dry, Recipe(saving=saving, head_tile=head_tile(graph)), name="x", budget_bytes=0)
        best[plan.arena_bytes] = simulate(plan, graph, dry).step_ns
    problem = posed(graph, dry)
    for arena, step_ns in best.items():
        budget = outside_arena(graph, dry) + arena * 102 // 100
        assert simulate(solved(problem, budget, QUICK), graph, dry).step_ns <= step_ns


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(CATALOGUE)),
    seq=st.integers(32, 8192),
    batch=st.integers(1, 8),
    rank=st.integers(1, 128),
    budget=st.sampled_from([1, 10**8, 10**9, 5 * 10**9]),
)
def test_every_catalogue_model_gets_a_plan_or_a_least_budget(
    name: str, seq: int, batch: int, rank: int, budget: int, device: Device
) -> None:
    workload = Workload(seq_len=seq, batch_size=batch, lora=Lora(rank=rank), weights=weight_formats("int4-g64"))
    graph = build_graph(catalogue_model(name), workload)
    found = tradeoff(graph, device, budget, Effort(deterministic_s=0.05))
    if found.chosen is None:
        with pytest.raises(InfeasibleBudget, match="least budget found") as caught:
            require_fit(found)
        assert caught.value.least_bytes > budget
    else:
        assert found.chosen.prediction.peak_bytes <= budget


@pytest.fixture(scope="module")
def eight_layers(qwen_graph: Graph) -> Graph:
    config = qwen_graph.config
    return build_graph(replace(config, windows=config.windows[:8]), qwen_graph.workload)


@pytest.mark.slow
@pytest.mark.parametrize(("budget_mb", "unpack_rate"), [(150, 2.7e9), (200, 2e8), (400, 2.7e9)])
def test_an_engine_for_unpacking_is_used_where_there_is_one(
    budget_mb: int, unpack_rate: float, eight_layers: Graph, device: Device
) -> None:
    """No slower than without it and than any fixed strategy that fits, above its bound, and the time is the simulator's."""
    alone = override(device, [f"runtime.unpack_rate={unpack_rate}"])
    concurrent = override(alone, ["runtime.unpack_beside=1"])
    budget = budget_mb * 10**6
    found = tradeoff(eight_layers, concurrent, budget, QUICK)
    row = require_fit(found)
    facts = row.plan.solver
    assert facts is not None
    assert facts.objective_ns == row.prediction.step_ns
    assert row.prediction.busy_ns[Engine.UNPACK] > 0
    without = solved(posed(eight_layers, alone), budget - peak_margin(eight_layers, alone), QUICK)  # as a table plans
    assert row.prediction.step_ns < simulate(without, eight_layers, alone).step_ns
    fixed = [other.prediction.step_ns for other in found.rows if other.plan.exact and other.fits]
    assert row.prediction.step_ns == min(fixed)


@pytest.mark.slow
def test_weights_that_outgrow_the_page_cache_are_read_from_flash_again(eight_layers: Graph, device: Device) -> None:
    """With little page cache each use waits for flash: no plan is as fast as with enough."""
    budget = outside_arena(eight_layers, device) + 200 * 10**6
    files = sum(weight.nbytes for weight in eight_layers.weights.values())
    steps, reads = [], []
    for share in (1.0, 0.5, 0.0):
        short = override(device, [f"hardware.page_cache_bytes={share * files}", "hardware.flash_read=1e8"])
        found = simulate(solved(posed(eight_layers, short), budget, QUICK), eight_layers, short)
        steps.append(found.step_ns)
        reads.append(found.flash_read_bytes)
    assert steps[0] < steps[1] < steps[2]
    assert reads[0] < reads[1] < reads[2]
    whole = override(device, [f"hardware.page_cache_bytes={files}"])
    assert CostModel(eight_layers, whole).unpack_ns(eight_layers.weights[WeightId("0.up.weight")]) == CostModel(
        eight_layers, device
    ).unpack_ns(eight_layers.weights[WeightId("0.up.weight")])


@pytest.mark.parametrize("seq_len", [64, 2048])
def test_a_higher_cap_on_writes_never_raises_the_least_budget(seq_len: int, device: Device) -> None:
    graph = build_graph(small_config(layers=6), small_workload(seq_len=seq_len))
    least = [
        leanest(posed(graph, override(device, [f"runtime.flash_write_cap_bytes={cap}"])), QUICK).arena_bytes
        for cap in (0, 100_000, 10**9)
    ]
    assert least == sorted(least, reverse=True)


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_least_plan_hardly_depends_on_the_seed(seed: int, device: Device) -> None:
    graph = build_graph(small_config(layers=8, windows=(32, 0) * 4), small_workload(seq_len=1024))
    problem = posed(graph, device)
    first, other = (leanest(problem, replace(QUICK, seed=n)).arena_bytes for n in (0, seed))
    assert other == pytest.approx(first, rel=0.03)


def test_what_is_about_as_fast_and_writes_less_is_taken(device: Device) -> None:
    """Under a budget with room to spare the fastest plan writes, and one that writes nothing is as fast within a hundredth."""
    graph = build_graph(small_config(layers=8), small_workload(seq_len=512))
    problem = posed(graph, device)
    least = outside_arena(graph, device) + leanest(problem, QUICK).arena_bytes
    for factor in (1.02, 1.2, 2.0):
        fastest = solved(problem, int(factor * least), QUICK)
        thrifty = write_less(problem, fastest, QUICK)
        before, after = (simulate(plan, graph, device) for plan in (fastest, thrifty))
        assert after.flash_written_bytes <= before.flash_written_bytes
        assert after.step_ns <= before.step_ns * 1.01
        assert thrifty.solver is not None
        assert thrifty.solver.bound_ns <= after.step_ns == thrifty.solver.objective_ns


def test_where_writing_pays_the_plan_writes(device: Device) -> None:
    graph = build_graph(small_config(layers=8), small_workload(seq_len=512))
    slow = override(device, ["hardware.product_flops=1e10"])
    problem = posed(graph, slow)
    least = outside_arena(graph, slow) + leanest(problem, QUICK).arena_bytes
    fastest = solved(problem, least * 101 // 100, QUICK)
    written = simulate(fastest, graph, slow).flash_written_bytes
    dry = override(slow, ["runtime.flash_write_cap_bytes=0"])
    try:
        without_ns = simulate(solved(posed(graph, dry), least * 101 // 100, QUICK), graph, dry).step_ns
    except InfeasibleBudget:
        without_ns = 10**18
    assert written
    assert without_ns > simulate(fastest, graph, slow).step_ns * 1.01
    assert simulate(write_less(problem, fastest, QUICK), graph, slow).flash_written_bytes > 0


def test_a_table_leaves_the_margin_that_its_range_asks_for(small_graph: Graph, device: Device) -> None:
    margin = peak_margin(small_graph, device)
    assert margin > 0
    sure = tradeoff(small_graph, device, 80_000_000, QUICK)
    assert sure.chosen is not None
    assert not sure.tight
    assert sure.chosen.prediction.peak_bytes + margin <= 80_000_000
    assert uncertainty(sure.chosen.plan, small_graph, device).peak_bytes[1] <= 80_000_000
    tight = tradeoff(small_graph, device, sure.least_budget_bytes + margin // 2, QUICK)
    assert tight.chosen is not None
    assert tight.tight


def test_when_the_time_is_over_there_are_the_essential_rows_and_no_claim(small_graph: Graph, device: Device) -> None:
    found = tradeoff(small_graph, device, 10**9, replace(QUICK, until=0.0))
    assert {row.name for row in found.rows} == {"mebp", "checkpoint-1"}
    assert found.out_of_time
    with pytest.raises(NoPlanInTime):
        pose(small_graph, device, replace(QUICK, until=0.0))


def test_a_stop_before_the_search_leaves_the_essential_rows(small_graph: Graph, device: Device) -> None:
    stop = Stop()
    stop.ask()
    found = tradeoff(small_graph, device, 10**9, replace(QUICK, stop=stop))
    assert found.interrupted
    assert found.chosen is not None
    assert {"mebp", "checkpoint-1"} <= {row.name for row in found.rows}


@pytest.mark.parametrize("budget", [1e9, "1GB", -5, True, None])
def test_a_budget_that_is_no_number_of_bytes_is_one_line(budget: object, small_graph: Graph, device: Device) -> None:
    for plan in (lambda: tradeoff(small_graph, device, budget), lambda: solve(posed(small_graph, device), budget, QUICK)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="`budget` = "):
            plan()


def test_results_print_themselves_in_a_line(small_graph: Graph, device: Device) -> None:
    found = tradeoff(small_graph, device, 10**9, QUICK)
    for thing in (found, found.rows[0], found.rows[0].plan, found.graph, found.rows[0].prediction):
        assert len(repr(thing)) < 200
