"""What an order with recomputation costs: the checker of this package, simple and apart from every solver.

An order is a sequence of runs. A run reads the newest earlier run of each input; a result lives from its run to the last run that
reads it. A run marked `loaded` brings the result back from flash instead: it reads nothing, and its node is written out once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mebp.errors import InvalidPlan
from mebp.planner.dag.graph import Dag


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a node, or its load from flash."""

    node: int
    loaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flash:
    """What moving a byte costs, in the unit that the graph's costs are whole numbers of; transfers count in full, each rounded up,
    and nothing overlaps them.
    """

    bytes_per_cost: float

    def cost(self, nbytes: int) -> int:
        """Cost of one transfer."""
        return int(-(-nbytes // self.bytes_per_cost))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Cost and peak bytes of an order, and the position where the peak is reached."""

    cost: int
    peak: int
    peak_at: int


def measure(dag: Dag, runs: Sequence[Run], flash: Flash | None = None) -> Measured:
    """Check an order and add it up; InvalidPlan where a run's input was never made, a node never runs, or a load was never made."""
    last_use, newest = lifetimes(dag, runs)
    missing = [v for v in range(dag.num_nodes) if newest[v] < 0]
    if missing:
        raise InvalidPlan("every node runs", None, f"{dag.shown(missing[0])} does not")
    change = [0] * (len(runs) + 1)
    for at, run in enumerate(runs):
        change[at] += dag.sizes[run.node]
        change[last_use[at] + 1] -= dag.sizes[run.node]
    live, peak, peak_at = 0, -1, 0
    for at in range(len(runs)):
        live += change[at]
        if live > peak:
            peak, peak_at = live, at
    return Measured(cost=order_cost(dag, runs, flash), peak=peak, peak_at=peak_at)


def lifetimes(dag: Dag, runs: Sequence[Run]) -> tuple[list[int], list[int]]:
    """For every run the position of its last reader (its own, where nothing reads it); for every node its newest run."""
    newest = [-1] * dag.num_nodes
    last_use = list(range(len(runs)))
    for at, run in enumerate(runs):
        if run.loaded and newest[run.node] < 0:
            raise InvalidPlan("load only what was made", at, dag.shown(run.node))
        for other in () if run.loaded else dag.inputs[run.node]:
            if newest[other] < 0:
                raise InvalidPlan("inputs come first", at, f"{dag.shown(run.node)} reads {dag.shown(other)}")
            last_use[newest[other]] = at
        newest[run.node] = at
    return last_use, newest


def order_cost(dag: Dag, runs: Sequence[Run], flash: Flash | None) -> int:
    """Cost of all runs, loads, and one write of each node that is loaded."""
    loads = [run.node for run in runs if run.loaded]
    if loads and flash is None:
        raise InvalidPlan("loads need flash", None, f"{dag.shown(loads[0])} is loaded, and no flash is given")
    moved = sum(flash.cost(dag.sizes[v]) for v in (*loads, *set(loads))) if flash else 0
    return sum(dag.costs[run.node] for run in runs if not run.loaded) + moved
