"""The chunks of a sequence as a decision: bounds that hold over all of them, and plans that check."""

from dataclasses import replace

import pytest

from mebp.check import check
from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.models.build import build_graph
from mebp.models.catalogue import load_model
from mebp.models.config import LINEARS
from mebp.models.graph import Graph
from mebp.plan import Engine, Plan, Unpack
from mebp.planner.effort import Effort
from mebp.planner.layer.option import relabel
from mebp.planner.length import over_lengths
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.tiling import WAYS, Tilings, in_chunks, tilings
from mebp.planner.tradeoff import tradeoff
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena
from mebp.sim.profile import load_device
from mebp.sim.simulate import simulate
from tests.conftest import small_config, small_workload
from tests.plans import leanest, posed, solved

QUICK = Effort(deterministic_s=0.2)


@pytest.fixture(scope="module")
def long_graph() -> Graph:
    return build_graph(small_config(), small_workload(seq_len=1200))


@pytest.fixture(scope="module")
def step(long_graph: Graph) -> Tilings:
    return tilings(long_graph, load_device("iphone15promax"))


def whole_least(graph: Graph, device: Device) -> int:
    """The least budget of the step that runs whole."""
    return outside_arena(graph, device) + leanest(posed(graph, device), QUICK).arena_bytes


def require_valid(step: Tilings, plan: Plan, budget_bytes: int) -> None:
    graph = step.graph_of(plan)
    check(plan, graph)
    assert step.footprint(plan) <= budget_bytes
    assert plan.solver is not None
    step_ns = simulate(plan, graph, step.device).step_ns
    assert step.best_step_ns(budget_bytes) == plan.solver.whole_bound_ns <= plan.solver.bound_ns <= step_ns
    assert plan.solver.objective_ns == step_ns


def test_a_step_is_offered_in_chunks_shorter_than_it_is(long_graph: Graph) -> None:
    ways = [(graph.workload.chunk, graph.workload.whole_attention) for graph in in_chunks(long_graph)]
    assert ways == [(0, False), *(way for way in WAYS if way[0] < 1200)]
    asked = build_graph(long_graph.config, replace(long_graph.workload, chunk=100))
    assert in_chunks(asked) == (asked,)


def test_below_what_the_whole_step_needs_it_runs_in_chunks(step: Tilings) -> None:
    whole, least = whole_least(step.graph, step.device), step.least(0, QUICK)
    assert least.workload.chunk
    check(least, step.graph_of(least))
    assert step.footprint(least) < whole
    budget = (step.footprint(least) + whole) // 2
    plan = step.solve(budget, QUICK, least)
    assert plan.workload.chunk
    require_valid(step, plan, budget)


def test_with_all_the_room_there_is_it_runs_whole(step: Tilings) -> None:
    plan = step.solve(10**9, QUICK)
    assert not plan.workload.chunk
    require_valid(step, plan, 10**9)
    assert plan.solver is not None
    assert plan.solver.status == "optimal"


def test_where_only_what_waits_for_flash_may_fit_there_is_a_bound_too(step: Tilings) -> None:
    for graph in step.graphs:
        problem, room = posed(graph, step.device), graph.largest_op_bytes
        assert 0 < problem.class_bound_ns(room) <= problem.class_bound_ns(room // 2)


def test_a_table_keeps_its_rows_where_the_time_is_over_before_its_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> None:
        raise NoPlanInTime("no time")

    monkeypatch.setattr("mebp.planner.tradeoff.outline", late)
    monkeypatch.setattr(Tilings, "best_step_ns", late)
    found = tradeoff(build_graph(small_config(), small_workload()), load_device("iphone15promax"), 10**9, QUICK)
    assert found.row("solved")
    assert not found.outline
    assert found.more_saves_ns is None


@pytest.fixture(scope="module")
def many_chunks() -> Graph:
    config = load_model("qwen3-0.6b")
    return build_graph(replace(config, windows=config.windows[:3]), small_workload(seq_len=512, chunk=64))


def test_no_recipe_in_chunks_is_faster_than_the_bound_in_its_room(many_chunks: Graph) -> None:
    """Those too that unpack a weight once for all chunks of an op."""
    device = load_device("iphone15promax").with_value("runtime.flash_write_cap_bytes", 0.0)
    plans = [strategy.plan(many_chunks, device, 0) for strategy in STRATEGIES.values()]
    plans = [plan for plan in plans if plan.workload == many_chunks.workload]
    assert any(isinstance(instruction, Unpack) for plan in plans for instruction in plan.instructions)
    for plan in plans:
        bound_ns = posed(many_chunks, device).whole_bound_ns(plan.arena_bytes)
        assert bound_ns <= simulate(plan, many_chunks, device).step_ns, plan.name


def test_weights_unpacked_once_for_all_chunks_take_what_their_options_say(many_chunks: Graph) -> None:
    device = load_device("iphone15promax")
    problem = posed(many_chunks, device)
    wholes = {option.whole for stretch in problem.stretches for option in stretch.menu.options}
    assert max(map(len, wholes)) == len(LINEARS), "all weights of a layer at most"
    for whole in wholes:
        saving, unpacking, step_ns = {many_chunks.stream[-1]: Saving.KEEP}, {}, problem.base_ns + problem.heads[0].duration_ns
        for stretch in problem.stretches:
            options = (one for one in stretch.menu.options if one.takes_residents or one.whole)
            chosen = min((one for one in options if one.whole == whole and not one.shared), key=lambda one: one.recompute_ns)
            step_ns += len(stretch.layers) * chosen.recompute_ns
            for layer in stretch.layers:
                saving |= relabel(chosen.saving, [stretch.menu.source], [layer])
                unpacking |= {layer.weights[role]: Unpacking.WHOLE for role in whole}
        recipe = Recipe(saving=saving, unpacking=unpacking, head_tile=problem.heads[0].tile)
        plan = lower(many_chunks, device, recipe, name="whole", budget_bytes=0)
        check(plan, many_chunks)
        assert simulate(plan, many_chunks, device).busy_ns[Engine.COMPUTE] == step_ns


@pytest.mark.slow
def test_no_plan_in_any_chunks_is_faster_than_the_bound(step: Tilings) -> None:
    whole, least = whole_least(step.graph, step.device), step.footprint(step.least(0, QUICK))
    for budget in (least, (3 * least + whole) // 4, (least + whole) // 2, whole, 2 * whole):
        for graph in in_chunks(step.graph):
            try:
                plan = solved(posed(graph, step.device), budget, QUICK)
            except InfeasibleBudget:
                continue
            assert step.best_step_ns(budget) <= simulate(plan, graph, step.device).step_ns
        best = step.solve(budget, QUICK)
        for name in ("checkpoint-1", "sqrt", "keep-all", "greedy"):
            fixed = STRATEGIES[name].plan(step.graph, step.device, budget)
            if outside_arena(step.graph, step.device) + fixed.arena_bytes <= budget:
                assert best.solver is not None
                assert best.solver.objective_ns <= simulate(fixed, step.graph, step.device).step_ns


def test_a_budget_below_the_least_is_refused_with_the_least(step: Tilings) -> None:
    least = step.footprint(step.least(0, QUICK))
    with pytest.raises(InfeasibleBudget) as refused:
        step.solve(least - 200_000, QUICK)
    assert refused.value.least_bytes == least


def test_lengths_have_the_rows_that_they_are_compared_by(long_graph: Graph, device: Device) -> None:
    asked: list[int] = []
    found = over_lengths(long_graph, device, 10**9, [128, 512], QUICK, asked.append)
    assert asked == [table.graph.workload.seq_len for table in found] == [128, 512]
    for table in found:
        assert {row.name for row in table.rows} == {"solved", "least", "mebp", "checkpoint-1"}
        rows = {row.name: row for row in table.rows}
        assert rows["least"].prediction.peak_bytes <= min(row.prediction.peak_bytes for row in table.rows)
        assert rows["solved"].tokens_per_s >= rows["checkpoint-1"].tokens_per_s
