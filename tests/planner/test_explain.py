"""Explanations: they add up to what the plan does."""

from itertools import pairwise

import pytest

from mebp.models.graph import Graph
from mebp.plan import Compute, Store
from mebp.planner.explain import counts, fates, kept_bytes, live_at_peak
from mebp.planner.recipe.recipe import backward_reads
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.device import Device
from mebp.sim.simulate import SCRATCH, simulate


@pytest.mark.parametrize("name", ["mebp", "keep-all", "checkpoint-1", "greedy"])
def test_fates_cover_every_activation_that_backward_reads(name: str, small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES[name].plan(small_graph, device, 10**9)
    found = fates(plan, small_graph, device)
    assert sum(fate.kept + fate.stored + fate.recomputed for fate in found) == len(backward_reads(small_graph))
    stored = {i.tensor for i in plan.instructions if isinstance(i, Store)}
    assert sum(fate.stored for fate in found) == len(stored & backward_reads(small_graph))
    assert all(before.ns_per_byte >= after.ns_per_byte for before, after in pairwise(found))


def test_keep_all_keeps_and_checkpoints_recompute(small_graph: Graph, device: Device) -> None:
    everything = fates(STRATEGIES["keep-all"].plan(small_graph, device, 0), small_graph, device)
    assert not any(fate.recomputed or fate.stored for fate in everything)
    checkpoint = STRATEGIES["checkpoint-1"].plan(small_graph, device, 0)
    by_name = {fate.name: fate for fate in fates(checkpoint, small_graph, device)}
    assert (by_name["layer input"].kept, by_name["layer input"].recomputed) == (
        small_graph.config.num_layers,
        0,
    )  # nothing below layer 0 is trained
    assert by_name["gate.out"].recomputed == small_graph.config.num_layers


def test_what_is_named_at_the_peak_is_what_is_live_there(small_graph: Graph, device: Device) -> None:
    for strategy in STRATEGIES.values():
        graph = strategy.graph(small_graph)
        prediction = simulate(strategy.plan(graph, device, 10**9), graph, device)
        live = max(moment.live_bytes for moment in prediction.memory)
        named = live_at_peak(graph, prediction)
        assert sum(part.nbytes for part in named) == live
        assert sum(part.count for part in named) == len(prediction.peak_tensors)
        assert prediction.arena_breakdown.get(SCRATCH, 0) == prediction.peak_tensors.get(SCRATCH, 0)


def test_kept_bytes_and_counts_are_the_plans(small_graph: Graph, device: Device) -> None:
    few, many = (STRATEGIES[name].plan(small_graph, device, 0) for name in ("checkpoint-1", "keep-all"))
    assert kept_bytes(few, small_graph) < kept_bytes(many, small_graph)
    found = counts(few, small_graph, simulate(few, small_graph, device))
    assert found.recomputed == sum(isinstance(i, Compute) and i.recompute for i in few.instructions) > 0
    assert counts(many, small_graph, simulate(many, small_graph, device)).recomputed == 0
    assert found.unpacked_weights > 0
