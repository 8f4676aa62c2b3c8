"""The optimum of a tiny graph by Dijkstra's algorithm over what has run, what is in memory and how often each node has run."""

import heapq
from itertools import count

from mebp.planner.dag.graph import Dag

State = tuple[frozenset[int], frozenset[int], tuple[int, ...]]


def least_cost(dag: Dag, budget: int, *, copies: int, fixed_order: bool) -> int | None:
    """Least cost of running every node within `budget`, each at most `copies` times; None where nothing does."""
    n = dag.num_nodes
    start: State = (frozenset(), frozenset(), (0,) * n)
    ties = count()
    queue: list[tuple[int, int, State]] = [(0, next(ties), start)]
    settled: set[State] = set()
    while queue:
        cost, _, state = heapq.heappop(queue)
        if state in settled:
            continue
        settled.add(state)
        done, live, runs = state
        if len(done) == n:
            return cost
        for gone in live:
            heapq.heappush(queue, (cost, next(ties), (done, live - {gone}, runs)))
        for node in range(n):
            first_in_turn = not fixed_order or node in done or node == len(done)
            if node in live or runs[node] == copies or not first_in_turn or not set(dag.inputs[node]) <= live:
                continue
            if sum(dag.sizes[v] for v in live) + dag.sizes[node] <= budget:
                more = (*runs[:node], runs[node] + 1, *runs[node + 1 :])
                heapq.heappush(queue, (cost + dag.costs[node], next(ties), (done | {node}, live | {node}, more)))
    return None
