"""The fixed recipes: what each of them keeps, stores, recomputes and unpacks."""

from collections import Counter

import pytest

from mebp.models.graph import Graph
from mebp.plan import Compute, Load, Plan, Store, Unpack
from mebp.planner.recipe.lower import live_profile, lower
from mebp.planner.recipe.recipe import Recipe, Saving, backward_reads, head_tile
from mebp.planner.recipe.schedule import schedule
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.device import Device
from mebp.sim.simulate import simulate


def counts(plan: Plan) -> Counter[str]:
    found = Counter(type(i).__name__ for i in plan.instructions)
    found["again"] = sum(isinstance(i, Compute) and i.recompute for i in plan.instructions)
    return found


def plan(name: str, graph: Graph, device: Device, budget: int = 10**9) -> Plan:
    return STRATEGIES[name].plan(STRATEGIES[name].graph(graph), device, budget)


def test_keep_all_runs_every_op_once(small_graph: Graph, device: Device) -> None:
    found = counts(plan("keep-all", small_graph, device))
    assert found["Compute"] == len(small_graph.ops)
    assert not found["again"] + found["Store"] + found["Unpack"]


def test_mebp_stores_every_layers_input_and_loads_it_once(small_graph: Graph, device: Device) -> None:
    found = plan("mebp", small_graph, device)
    stored = [i.tensor for i in found.instructions if isinstance(i, Store)]
    loaded = [i.place.tensor for i in found.instructions if isinstance(i, Load)]
    assert stored == ["embed.out", *(f"{layer}.residual2.out" for layer in range(4))]
    assert sorted(loaded) == sorted(stored)


def test_mebp_unpacks_each_weight_for_each_use(small_graph: Graph, device: Device) -> None:
    """Seven linears: forward, recomputation (down's is not needed) and backward (q, k, v of layer 0 need none)."""
    found = plan("mebp", small_graph, device)
    assert counts(found)["Unpack"] == 4 * (7 + 6 + 7) - 3


def test_mebp_has_full_logits_in_its_scratch(qwen_graph: Graph, device: Device) -> None:
    head = next(i for i in plan("mebp", qwen_graph, device).instructions if isinstance(i, Compute) and i.op == "head")
    assert head.scratch is not None
    assert head.scratch.nbytes >= 256 * 151_936 * 4


@pytest.mark.parametrize(("every", "kept"), [("checkpoint-1", 4), ("checkpoint-2", 2), ("sqrt", 2)])
def test_a_checkpoint_strategy_recomputes_all_but_its_checkpoints(
    every: str, kept: int, small_graph: Graph, device: Device
) -> None:
    found = plan(every, small_graph, device)
    again = {i.op for i in found.instructions if isinstance(i, Compute) and i.recompute}
    assert sum(op.endswith("residual2") for op in again) == 4 - kept
    assert {f"{layer}.glu" for layer in range(4)} <= again


def test_mezo_runs_no_backward_and_says_so(small_graph: Graph, device: Device) -> None:
    found = plan("mezo", small_graph, device)
    graph = STRATEGIES["mezo"].graph(small_graph)
    assert not found.exact
    assert sum(op.kind.makes_loss for op in graph.ops) == 2
    assert not any(op.backward for op in graph.ops)


def test_greedy_keeps_within_its_budget_and_uses_it(qwen_graph: Graph, device: Device) -> None:
    steps = []
    for budget in (250_000_000, 400_000_000, 800_000_000):
        found = simulate(plan("greedy", qwen_graph, device, budget), qwen_graph, device)
        assert found.peak_bytes <= budget
        steps.append(found.step_ns)
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[-1]


def test_more_checkpoints_mean_less_recomputation(qwen_graph: Graph, device: Device) -> None:
    found = {name: simulate(plan(name, qwen_graph, device), qwen_graph, device) for name in ("keep-all", "checkpoint-1", "sqrt")}
    assert found["keep-all"].recompute_ns < found["checkpoint-1"].recompute_ns < found["sqrt"].recompute_ns
    assert found["keep-all"].peak_bytes > found["checkpoint-1"].peak_bytes


def test_the_arena_is_the_live_peak_up_to_packing(qwen_graph: Graph, device: Device) -> None:
    recipe = Recipe(saving=dict.fromkeys(backward_reads(qwen_graph), Saving.KEEP), head_tile=head_tile(qwen_graph))
    live = max(live_profile(schedule(qwen_graph, recipe), qwen_graph))
    arena = lower(qwen_graph, device, recipe, name="x", budget_bytes=0).arena_bytes
    assert live <= arena <= 1.03 * live


def test_unpacks_are_freed_before_the_next_one(small_graph: Graph, device: Device) -> None:
    """Whole weights are lazy: never two of them at once."""
    live: set[str] = set()
    for i in plan("mesp", small_graph, device).instructions:
        if isinstance(i, Unpack):
            assert not live
            live.add(i.weight)
        elif hasattr(i, "tensor"):
            live.discard(i.tensor)
