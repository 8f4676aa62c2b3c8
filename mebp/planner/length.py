"""What a step takes at several lengths of the sequence: the paper's recipe, checkpoint-1 and the solved plans."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.planner.effort import Effort
from mebp.planner.tradeoff import ESSENTIAL, Tradeoff, tradeoff
from mebp.sim.device import Device


def over_lengths(
    graph: Graph,
    device: Device,
    budget_bytes: int,
    lengths: Sequence[int],
    effort: Effort,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Tradeoff, ...]:
    """A table for every length under `budget_bytes`, of fixed recipes the essential ones; `progress(length)` before each. A stop,
    or the end of the time, ends it with the lengths so far. InputError for a length that the model cannot take.
    """
    graphs = [build_graph(graph.config, replace(graph.workload, seq_len=length)) for length in lengths]
    found: list[Tradeoff] = []
    for own in graphs:
        if effort.over:
            break
        progress(own.workload.seq_len)
        found.append(tradeoff(own, device, budget_bytes, effort, recipes=ESSENTIAL))
    return tuple(found)
