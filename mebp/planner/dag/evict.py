"""Bring an order under a budget by evicting what pays least to keep, and recomputing it (or loading it) when it is read.

The rule of dynamic tensor rematerialisation (Kirisame et al., 2021) with the future known: evict the result that is largest, read
farthest from now, and cheapest to bring back.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mebp.planner.dag.graph import Dag
from mebp.planner.dag.order import Flash, Run, measure

FARTHEST = 32  # nodes to recompute for one result; beyond, it is as good as lost
MOST_RUNS = 3  # per node, on average; an order that needs more is thrashing


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionWeights:
    """Exponents of distance, size and cost in the choice of what to evict."""

    distance: float = 1.0
    size: float = 1.0
    cost: float = 1.0


class _NoRoom(Exception):
    pass


def evict(
    dag: Dag, budget: int, order: Sequence[int], weights: EvictionWeights, flash: Flash | None = None, most_runs: int = 0
) -> list[Run] | None:
    """Runs of all nodes whose first runs stand in `order`, within `budget` bytes; None where it finds none with
    at most `most_runs` runs (0: MOST_RUNS per node).
    """
    machine = _Machine(dag, budget, order, weights, flash)
    machine.most_runs = most_runs or MOST_RUNS * dag.num_nodes
    try:
        for stage, node in enumerate(order):
            machine.stage = stage
            machine.make(node)
    except _NoRoom:
        return None
    return machine.runs


def drop_needless(
    dag: Dag, budget: int, runs: list[Run], flash: Flash | None = None, *, over: Callable[[], bool] = lambda: False
) -> list[Run]:
    """Remove, last first, every extra run without which the order still fits, until the time is `over`."""
    first: set[int] = set()
    extras = []
    for at, run in enumerate(runs):
        if run.node in first:
            extras.append(at)
        first.add(run.node)
    for at in reversed(extras):
        if over():
            break
        without = runs[:at] + runs[at + 1 :]
        if measure(dag, without, flash).peak <= budget:
            runs = without
    return runs


class _Machine:
    """What is in memory while an order is played."""

    def __init__(self, dag: Dag, budget: int, order: Sequence[int], weights: EvictionWeights, flash: Flash | None) -> None:
        self.dag, self.budget, self.weights, self.flash = dag, budget, weights, flash
        self.stage = self.most_runs = 0
        self.runs: list[Run] = []
        self.live: dict[int, None] = {}
        self.live_bytes = 0
        self.pinned: dict[int, int] = {}
        self.made: set[int] = set()
        self.stored: set[int] = set()
        position = {node: at for at, node in enumerate(order)}
        self.uses = [sorted(position[w] for w in consumers) for consumers in dag.consumers]

    def make(self, node: int) -> None:
        """Run a node, or load it, behind runs of all that it reads and that is not in memory."""
        waiting = [self._asked(node)]
        while waiting:
            reads = waiting[-1][1]
            missing = next((other for other in reads if other not in self.live), None)
            if missing is None:
                self._run(*waiting.pop())
            else:
                waiting.append(self._asked(missing))

    def _asked(self, node: int) -> tuple[Run, tuple[int, ...]]:
        """The run that brings a node's result, and what it reads, which from now on stays until it has been read."""
        if len(self.runs) > self.most_runs:
            raise _NoRoom
        loaded = node in self.made and self._load_cost(node) < self._run_cost(node)
        reads = () if loaded else self.dag.inputs[node]
        for other in reads:
            self.pinned[other] = self.pinned.get(other, 0) + 1
        return Run(node=node, loaded=loaded), reads

    def _run(self, run: Run, reads: tuple[int, ...]) -> None:
        node = run.node
        self._require_room(self.dag.sizes[node])
        self.runs.append(run)
        self.made.add(node)
        self.stored |= {node} if run.loaded else set()
        self.live[node] = None
        self.live_bytes += self.dag.sizes[node]
        for other in reads:
            self.pinned[other] -= 1
        for other in (*reads, node):
            if other in self.live and not self.pinned.get(other) and self._next_use(other) is None:
                self._drop(other)

    def _require_room(self, nbytes: int) -> None:
        while self.live_bytes + nbytes > self.budget:
            candidates = [v for v in self.live if not self.pinned.get(v) and self.dag.sizes[v]]
            if not candidates:
                raise _NoRoom
            self._drop(max(candidates, key=self._worth))

    def _worth(self, node: int) -> float:
        """How much it pays to evict a node."""
        after = self._next_use(node)
        distance = (after - self.stage if after is not None else len(self.dag.costs)) + 1
        cost = min(self._run_cost(node), self._load_cost(node)) + 1
        weights = self.weights
        return float(distance**weights.distance * self.dag.sizes[node] ** weights.size / cost**weights.cost)

    def _run_cost(self, node: int) -> float:
        """Cost of a run with all that it needs and that is not in memory."""
        costs, inputs = self.dag.costs, self.dag.inputs
        total, seen, open_nodes = 0, {node}, [node]
        while open_nodes:
            at = open_nodes.pop()
            total += costs[at]
            for other in inputs[at]:
                if other not in self.live and other not in seen:
                    seen.add(other)
                    open_nodes.append(other)
            if len(seen) > FARTHEST:
                return float(total * FARTHEST)
        return total

    def _load_cost(self, node: int) -> float:
        if self.flash is None:
            return float("inf")
        return self.flash.cost(self.dag.sizes[node]) * (1 if node in self.stored else 2)

    def _next_use(self, node: int) -> int | None:
        """The next stage that reads a node (this one counts while its own node has not run)."""
        uses = self.uses[node]
        at = bisect_right(uses, self.stage)
        return uses[at] if at < len(uses) else None

    def _drop(self, node: int) -> None:
        del self.live[node]
        self.live_bytes -= self.dag.sizes[node]
