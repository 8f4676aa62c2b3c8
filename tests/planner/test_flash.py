"""Unpacking ahead: every weight is unpacked before it is read, at most two ahead, and none while a copy of it is live."""

import pytest

from mebp.check import check
from mebp.models.graph import Graph
from mebp.plan import Compute, Engine, Unpack
from mebp.planner.recipe.flash import hoist_unpacking
from mebp.planner.recipe.lower import lower
from mebp.planner.recipe.recipe import Recipe, Saving, Unpacking, head_tile
from mebp.planner.recipe.schedule import Run, Step, Unpacked, schedule
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.profile import override
from mebp.sim.simulate import simulate


def ahead_recipe(graph: Graph, linears: tuple[str, ...]) -> Recipe:
    weights = [weight.id for weight in graph.weights.values() if weight.role in linears]
    saving = dict.fromkeys(graph.stream, Saving.KEEP)
    return Recipe(saving=saving, unpacking=dict.fromkeys(weights, Unpacking.AHEAD), head_tile=head_tile(graph))


def hoisted(graph: Graph, device: Device, linears: tuple[str, ...]) -> list[Step]:
    recipe = ahead_recipe(graph, linears)
    return hoist_unpacking(schedule(graph, recipe), CostModel(graph, device))


ALL = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.mark.parametrize("linears", [ALL, ("up",), ("q", "down")])
@pytest.mark.parametrize("unpack_rate", [1e7, 2.7e9])
def test_at_most_two_weights_are_unpacked_ahead(
    linears: tuple[str, ...], unpack_rate: float, small_graph: Graph, device: Device
) -> None:
    concurrent = override(device, ["runtime.unpack_beside=1", f"runtime.unpack_rate={unpack_rate}"])
    waiting: list[str] = []
    moved = False
    for step in hoisted(small_graph, concurrent, linears):
        match step:
            case Unpacked(weight=weight):
                assert weight not in waiting
                waiting.append(weight)
                moved |= len(waiting) > 1
            case Run(op=op, streamed=()) if op.weights:
                assert waiting.pop(0) == op.weights[0]
            case _:
                pass
        assert len(waiting) <= 2
    assert not waiting
    assert moved or linears != ALL


def test_without_an_engine_of_its_own_nothing_moves(small_graph: Graph, device: Device) -> None:
    assert hoisted(small_graph, device, ALL) == schedule(small_graph, ahead_recipe(small_graph, ALL))


def test_what_is_unpacked_in_time_is_not_waited_for(qwen_graph: Graph, device: Device) -> None:
    """With a fast engine the step is the processor's own time, but for the first weight."""
    fast = override(device, ["runtime.unpack_beside=1", "runtime.unpack_rate=2e10"])
    plan = lower(qwen_graph, fast, ahead_recipe(qwen_graph, ALL), name="ahead", budget_bytes=10**9)
    assert check(plan, qwen_graph).peak_bytes == plan.arena_bytes
    found = simulate(plan, qwen_graph, fast)
    assert {i.engine for i in plan.instructions if isinstance(i, Unpack)} == {Engine.UNPACK}
    assert not any(isinstance(i, Compute) and i.streamed and i.op.split(".")[0].isdigit() for i in plan.instructions)
    assert found.step_ns - found.busy_ns[Engine.COMPUTE] < 0.002 * found.step_ns
