"""Simulated annealing over orders with recomputation (as FastSA, 2023, does): add, move and take out extra runs, move nodes.

The objective adds a penalty per byte above the budget at each run, so a search may start from an order that does
not fit. Rounds are played by a compiled function (anneal.c).
"""

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from mebp.native import NoLibraryError, load_library
from mebp.planner.dag.graph import Dag
from mebp.planner.dag.order import Flash, Run
from mebp.planner.effort import Effort, StopFlag

SOURCE = resources.files("mebp.planner.dag").joinpath("anneal.c").read_text(encoding="utf-8")
VISITS_PER_S = 250e6  # nodes and reads played in a second, about: the number of rounds follows from it
EXTRA = 0.3  # extra runs per node, estimated
HOT, COLD = 1.0, 0.01  # temperatures, in costs of a node on average
EXCESS_COST = 3.0  # the same for as many bytes above the budget as a node has on average
SEARCHES = 2
NEVER = 2**61  # a transfer that costs this is not made; twice as much is still a 64-bit number (see anneal.c)
NO_MEMORY = -2

Array = npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A graph, a budget, what may be changed (`copies` runs of a node at most, the order where it is free), flash to page to."""

    dag: Dag
    budget: int
    copies: int
    free_order: bool
    flash: Flash | None


def can_anneal() -> bool:
    """Whether there is a compiler here, or a library that one has built."""
    return _library() is not None


def anneal(task: Task, start: Sequence[Run], effort: Effort) -> list[list[Run]]:
    """The best order within the budget that each of two searches from `start` finds in `effort.wall_s`; `start` need not fit."""
    with replace(effort, wall_s=2 * effort.wall_s).flag() as flag, ThreadPoolExecutor(max_workers=SEARCHES) as pool:
        seeds = range(SEARCHES * effort.seed, SEARCHES * (effort.seed + 1))
        found = list(pool.map(lambda seed: _search(task, start, effort.wall_s, seed, flag), seeds))
    return [runs for runs in found if runs is not None]


def _search(task: Task, start: Sequence[Run], wall_s: float, seed: int, flag: StopFlag) -> list[Run] | None:
    dag, state, library = task.dag, _State(task.dag, start, task.copies - 1), _library()
    assert library is not None
    cost, size = (max(1.0, total / dag.num_nodes) for total in (dag.total_cost, sum(dag.sizes)))
    rounds = int(wall_s * VISITS_PER_S / ((1 + EXTRA) * (dag.num_nodes + sum(map(len, dag.inputs)))))
    graph = _graph_arrays(task)
    addresses = [array.ctypes.data if array is not None else None for array in graph]
    result = library.dag_anneal(
        dag.num_nodes,
        state.slots,
        task.free_order,
        *addresses,
        task.budget,
        rounds,
        HOT * cost,
        COLD * cost,
        EXCESS_COST * cost / size,
        seed,
        flag.address,
        *(array.ctypes.data for array in (state.order, state.before, state.loaded)),
    )
    if result == NO_MEMORY:
        raise MemoryError("no memory for the search")
    return list(state.runs()) if result >= 0 else None


class _State:
    """An order as the compiled function has it: first runs, and for each extra run the node that it precedes (-1: no such run)."""

    def __init__(self, dag: Dag, runs: Sequence[Run], slots: int) -> None:
        self.slots = slots
        self.order = np.array(list(dict.fromkeys(run.node for run in runs)), dtype=np.int32)
        self.before = np.full((dag.num_nodes, slots), -1, dtype=np.int32)
        self.loaded = np.zeros((dag.num_nodes, slots), dtype=np.uint8)
        first, waiting = set[int](), list[Run]()
        used = [0] * dag.num_nodes
        for run in runs:
            if run.node in first:
                waiting.append(run)
                continue
            first.add(run.node)
            for extra in waiting:
                if used[extra.node] < slots:
                    self.before[extra.node, used[extra.node]] = run.node
                    self.loaded[extra.node, used[extra.node]] = extra.loaded
                    used[extra.node] += 1
            waiting = []

    def runs(self) -> Iterator[Run]:
        """The runs: before each first run the extra ones that precede it, in the order of first runs."""
        position = {int(node): at for at, node in enumerate(self.order)}
        extras: dict[int, list[Run]] = {}
        for node in self.order.tolist():
            for stage, loaded in zip(self.before[node].tolist(), self.loaded[node].tolist(), strict=True):
                if stage >= 0 and position[stage] > position[node]:
                    extras.setdefault(stage, []).append(Run(node=node, loaded=bool(loaded)))
        for node in self.order.tolist():
            yield from extras.get(node, ())
            yield Run(node=node)


def _graph_arrays(task: Task) -> tuple[Array | None, ...]:
    """What each node reads and who reads it, from where to where; sizes, costs, and costs of a transfer."""
    dag, flash = task.dag, task.flash
    found: list[Array | None] = []
    for lists in (dag.inputs, dag.consumers):
        found.append(np.array([0, *accumulate(map(len, lists))], dtype=np.int32))
        found.append(np.array([other for nodes in lists for other in nodes] or [0], dtype=np.int32))
    found += [np.array(values, dtype=np.int64) for values in (dag.sizes, dag.costs)]
    moving = [min(NEVER, flash.cost(size)) for size in dag.sizes] if flash else None
    return (*found, None if moving is None else np.array(moving, dtype=np.int64))


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled search; None where there is no compiler."""
    try:
        library = load_library("anneal", SOURCE)
    except NoLibraryError:
        return None
    pointer, wide, narrow, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double
    library.dag_anneal.argtypes = [
        *[narrow] * 3,
        *[pointer] * 7,
        wide,
        wide,
        *[real] * 3,
        ctypes.c_uint64,
        *[pointer] * 4,
    ]
    library.dag_anneal.restype = wide
    return library
