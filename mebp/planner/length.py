"""What a step takes at several lengths of the sequence: the paper's recipe, checkpoint-1 and the solved plans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.planner.effort import Effort
from mebp.planner.row import Row
from mebp.planner.tradeoff import ESSENTIAL, Tradeoff, tradeoff
from mebp.sim.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """One length, and the rows of its table: the recipes, the solved plan where one fits, the plan of least memory."""

    seq_len: int
    found: Tradeoff

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.found.rows

    def tokens_per_s(self, row: Row) -> float:
        """Tokens of the step per second."""
        return row.graph.workload.tokens / row.prediction.step_ns * 1e9


def over_lengths(
    graph: Graph,
    device: Device,
    budget_bytes: int,
    lengths: Sequence[int],
    effort: Effort,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Length, ...]:
    """Plan at every length under `budget_bytes`; `progress(length)` before each. A stop, or the end of the time, ends it with the
    lengths so far. InputError for a length that the model cannot take.
    """
    graphs = [build_graph(graph.config, replace(graph.workload, seq_len=length)) for length in lengths]
    found: list[Length] = []
    for length, own in zip(lengths, graphs, strict=True):
        if effort.over:
            break
        progress(length)
        found.append(Length(seq_len=length, found=tradeoff(own, device, budget_bytes, effort, recipes=ESSENTIAL)))
    return tuple(found)
