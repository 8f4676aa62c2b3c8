"""The simulator: sums that are exact, a peak that is the plan's, and the execution rule on plans small enough to time by hand."""

from dataclasses import replace

import pytest

from mebp.check import check
from mebp.models.graph import Graph
from mebp.order import predecessors
from mebp.plan import Engine, Plan
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.footprint import outside_bytes
from mebp.sim.profile import override
from mebp.sim.published import published_bytes
from mebp.sim.simulate import simulate


def strategy_plan(name: str, graph: Graph, device: Device) -> tuple[Plan, Graph]:
    own = STRATEGIES[name].graph(graph)
    return STRATEGIES[name].plan(own, device, 10**9), own


@pytest.mark.parametrize("name", STRATEGIES)
def test_breakdowns_sum_to_their_totals_exactly(name: str, qwen_graph: Graph, device: Device) -> None:
    plan, graph = strategy_plan(name, qwen_graph, device)
    found = simulate(plan, graph, device)
    assert sum(found.peak_breakdown.values()) == found.peak_bytes
    assert sum(found.time_breakdown.values()) == found.step_ns
    assert sum(found.arena_breakdown.values()) == plan.arena_bytes


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_peak_is_the_plans_own_and_agrees_with_the_checker(name: str, small_graph: Graph, device: Device) -> None:
    plan, graph = strategy_plan(name, small_graph, device)
    found, checked = simulate(plan, graph, device), check(plan, graph)
    assert max(moment.live_bytes for moment in found.memory) == checked.live_peak_bytes
    assert found.peak_index == checked.peak_index
    outside = sum(outside_bytes(graph, device).values())
    assert found.peak_bytes == max(outside + checked.peak_bytes, published_bytes(graph, device))
    assert sum(found.peak_breakdown.values()) == found.peak_bytes


def test_on_one_engine_the_step_is_the_sum_of_its_instructions(small_graph: Graph, device: Device) -> None:
    plan, graph = strategy_plan("checkpoint-1", small_graph, device)
    cost = CostModel(graph, device)
    assert simulate(plan, graph, device).step_ns == sum(cost.duration(i) for i in plan.instructions)


@pytest.mark.parametrize("name", ["mebp", "sqrt"])
def test_no_instruction_starts_before_those_it_waits_for(name: str, small_graph: Graph, device: Device) -> None:
    concurrent = override(device, ["runtime.unpack_beside=1", "hardware.flash_write=1e6", "hardware.flash_read=1e6"])
    plan, graph = strategy_plan(name, small_graph, concurrent)
    timeline = {piece.index: piece for piece in simulate(plan, graph, concurrent).timeline}
    for index, before in enumerate(predecessors(plan)):
        for other in before:
            if other in timeline and index in timeline:
                assert timeline[other].end_ns <= timeline[index].start_ns


def test_an_unpack_engine_of_its_own_works_concurrently_with_compute(qwen_graph: Graph, device: Device) -> None:
    """The same recipe is faster, and both engines are busy for as long as before."""
    together, graph = strategy_plan("mebp", qwen_graph, device)
    concurrent = override(device, ["runtime.unpack_beside=1"])
    apart, _ = strategy_plan("mebp", qwen_graph, concurrent)
    shared, split = simulate(together, graph, device), simulate(apart, graph, concurrent)
    assert split.step_ns < shared.step_ns
    assert split.busy_ns[Engine.UNPACK] + split.busy_ns[Engine.COMPUTE] == shared.busy_ns[Engine.COMPUTE]


def test_slow_flash_is_waited_for_and_named(small_graph: Graph, device: Device) -> None:
    slow = override(device, ["hardware.flash_write=1e5"])
    plan, graph = strategy_plan("mebp", small_graph, slow)
    assert "flash wait" in {part.value for part in simulate(plan, graph, slow).time_breakdown}


@pytest.mark.parametrize("entry", ["hardware.product_flops", "runtime.unpack_rate", "hardware.memory_bandwidth"])
def test_a_faster_device_is_never_slower(entry: str, small_graph: Graph, device: Device) -> None:
    plan, graph = strategy_plan("mebp", small_graph, device)
    faster = override(device, [f"{entry}={2 * device.value(entry)}"])
    assert simulate(plan, graph, faster).step_ns < simulate(plan, graph, device).step_ns


def test_a_byte_written_again_waits_for_its_last_reader_on_another_engine(small_graph: Graph, device: Device) -> None:
    """Rule 3: whoever takes over a stored tensor's bytes waits for the store."""
    plan, _ = strategy_plan("mebp", small_graph, device)
    waits = predecessors(plan)
    stores = [at for at, i in enumerate(plan.instructions) if i.engine is Engine.STORE]
    waiting = [
        at for at, before in enumerate(waits) if plan.instructions[at].engine is Engine.COMPUTE and set(before) & set(stores)
    ]
    assert waiting


def test_the_order_of_ties_is_fixed(small_graph: Graph, device: Device) -> None:
    plan, graph = strategy_plan("mebp", small_graph, device)
    assert simulate(plan, graph, device) == simulate(replace(plan), graph, device)
