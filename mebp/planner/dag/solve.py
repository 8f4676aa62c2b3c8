"""The best order of a graph under a budget: eviction to start from, annealing, the exact model around the best.

Every answer is measured by mebp/planner/dag/order.py, which knows nothing of how it was found; the bound says what it holds for.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import exp

from ortools.sat.python import cp_model

from mebp.errors import InfeasibleBudget, Interrupted, NoPlanInTime
from mebp.planner.dag.anneal import Task, anneal, can_anneal
from mebp.planner.dag.evict import EvictionWeights, drop_needless, evict
from mebp.planner.dag.graph import Dag
from mebp.planner.dag.model import Model
from mebp.planner.dag.order import Flash, Measured, Run, measure
from mebp.planner.effort import Effort, Progress

EXACT_COPIES, MOST_COPIES = 2, 8
EXACT_NODES = 200  # in larger graphs the exact model comes last, around the best order
LARGEST_EXACT = 1500
FIXED_SHARE = 0.3  # of the time, for the graph's own order where any is allowed
FREE_EXACT_NODES = 12
START_SHARE, ANNEALED, FIRST_LOOK, EVICTED = 0.15, 0.5, 0.1, 0.25  # of the time: see where they are used
ANNEALED_COPIES = 3  # runs of a node that annealing allows, where any number is allowed
MANY_RUNS = 100_000  # of all nodes together, where an order that fits is wanted at any cost
VISITS_PER_S = 120_000  # nodes that eviction plays in a second, for a number of rounds that does not depend on the clock
TRIVIAL = "any order and any number of runs: it is each node run once, which no search here improves on"
WORKERS = 2
EVICTION_WEIGHTS = tuple(
    EvictionWeights(distance=d, size=s, cost=c) for d in (0.5, 1.0, 2.0) for s in (0.5, 1.0) for c in (0.5, 1.0, 2.0)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What the solver is given: a graph, bytes of memory, whether first runs keep the graph's order, flash to page to, the most
    `copies` (runs and loads) of one node, None for any number.
    """

    dag: Dag
    budget: int
    fixed_order: bool = False
    flash: Flash | None = None
    copies: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """An order, what it costs, and a cost that none of `scope` goes below."""

    runs: tuple[Run, ...]
    measured: Measured
    bound: int
    scope: str
    seconds: float

    @property
    def optimal(self) -> bool:
        return self.measured.cost <= self.bound

    @property
    def gap(self) -> float:
        return 0.0 if self.optimal else 1 - self.bound / self.measured.cost


@dataclass(slots=True)
class _Best:
    """The best order so far, and the callback that reports it."""

    problem: Problem
    progress: Progress | None
    bound: int
    runs: list[Run] | None = None
    cost: int = field(default=2**62)

    @property
    def copies(self) -> int:
        """Runs of one node that the exact model allows: as many as requested, else two, or as many as the best order has, up to a
        limit.
        """
        return self.problem.copies or min(MOST_COPIES, max(EXACT_COPIES, _most_runs(self.runs or [])))

    def offer(self, runs: list[Run] | None) -> None:
        """Take an order if it fits and costs less."""
        problem = self.problem
        if runs is None or (problem.copies is not None and _most_runs(runs) > problem.copies):
            return
        found = measure(problem.dag, runs, problem.flash)
        if found.peak <= problem.budget and found.cost < self.cost:
            self.runs, self.cost = runs, found.cost
            if self.progress:
                self.progress(self.cost, self.bound)


def solve_dag(problem: Problem, effort: Effort) -> Solution:
    """The cheapest order found in the wall seconds of `effort`.

    InfeasibleBudget below the largest working set, NoPlanInTime where no order was found.
    """
    clock = _Clock(effort.wall_s)
    dag = problem.dag
    if problem.budget < dag.least_budget:
        raise InfeasibleBudget(
            f"does not fit {problem.budget} bytes: one node alone takes {dag.least_budget}: raise `budget`",
            problem.budget,
            dag.least_budget,
        )
    best = _Best(problem=problem, progress=effort.progress, bound=dag.total_cost)
    _start(best, effort, clock)
    bound, scope = (_fixed_order if problem.fixed_order else _free_order)(best, effort, clock)
    if best.runs is None and effort.stop.asked:
        raise Interrupted("interrupted before an order was found")
    if best.runs is None:
        remedy = "`time_limit`, `copies` or `budget`" if problem.copies else "`time_limit` or `budget`"
        raise NoPlanInTime(f"no order within {problem.budget} bytes found in {clock.spent_s:.0f} s: raise {remedy}")
    measured = measure(dag, best.runs, problem.flash)
    return Solution(runs=tuple(best.runs), measured=measured, bound=min(bound, measured.cost), scope=scope, seconds=clock.spent_s)


class _Clock:
    """How much time there was, and how much is left."""

    def __init__(self, wall_s: float) -> None:
        self.wall_s = wall_s
        self._begin = time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._begin

    @property
    def left_s(self) -> float:
        return self.wall_s - self.spent_s


def _fixed_order(best: _Best, effort: Effort, clock: _Clock) -> tuple[int, str]:
    """Improve on the best in the graph's own order; a bound, and what it holds for."""
    dag = best.problem.dag
    _anneal(best, effort, ANNEALED * clock.left_s if dag.num_nodes > EXACT_NODES else FIRST_LOOK * clock.left_s, clock)
    copies = best.copies
    proven = _exact(best, clock.left_s, effort, fixed=True, order=list(range(dag.num_nodes)))
    if proven > dag.total_cost:
        return proven, f"the graph's order, at most {copies} runs per node"
    return dag.total_cost, TRIVIAL


def _free_order(best: _Best, effort: Effort, clock: _Clock) -> tuple[int, str]:
    """Improve on the best in any order; a bound, and what it holds for."""
    dag = best.problem.dag
    if dag.num_nodes <= EXACT_NODES:
        _exact(best, FIXED_SHARE * clock.left_s, effort, fixed=True, order=list(range(dag.num_nodes)))
    if best.cost == dag.total_cost:
        return dag.total_cost, TRIVIAL
    if dag.num_nodes <= FREE_EXACT_NODES:
        copies = best.copies
        proven = _exact(best, clock.left_s, effort, fixed=False)
        return max(dag.total_cost, proven), f"any order, at most {copies} runs per node"
    _anneal(best, effort, 0.4 * clock.left_s, clock)
    _play_and_evict(best, effort, clock)
    _anneal(best, effort, 0.4 * clock.left_s, clock)
    _exact(best, clock.left_s, effort, fixed=True)
    return dag.total_cost, TRIVIAL


def _most_runs(runs: Sequence[Run]) -> int:
    return max(Counter(run.node for run in runs).values(), default=0)


def _start(best: _Best, effort: Effort, clock: _Clock) -> None:
    """Play eviction in a few orders; where none fits, without a limit on runs: in the worst case everything is recomputed
    for each reader.
    """
    problem = best.problem
    orders = [list(range(problem.dag.num_nodes))]
    if not problem.fixed_order:
        orders.append(least_memory_order(problem.dag))
    for order, weights in product(orders, EVICTION_WEIGHTS):
        best.offer(_played(problem, order, weights, effort, clock))
        if best.cost == problem.dag.total_cost or effort.stop.asked or clock.spent_s > START_SHARE * clock.wall_s:
            break
    if best.runs is None and problem.copies is None and not effort.stop.asked:
        best.offer(_played(problem, orders[-1], EVICTION_WEIGHTS[-1], effort, clock, MANY_RUNS))


def _played(
    problem: Problem, order: Sequence[int], weights: EvictionWeights, effort: Effort, clock: _Clock, most_runs: int = 0
) -> list[Run] | None:
    runs = evict(problem.dag, problem.budget, order, weights, problem.flash, most_runs)
    return None if runs is None else _needed(problem, runs, effort, clock)


def _needed(problem: Problem, runs: list[Run], effort: Effort, clock: _Clock) -> list[Run]:
    """The runs without those that are not needed, as far as there is time to look."""
    return drop_needless(problem.dag, problem.budget, runs, problem.flash, over=lambda: effort.stop.asked or clock.left_s <= 0)


def least_memory_order(dag: Dag) -> list[int]:
    """A topological order that runs, of all that could, the node after which least is in memory."""
    left = [len(consumers) for consumers in dag.consumers]
    waiting = [len(reads) for reads in dag.inputs]
    ready = [v for v in range(dag.num_nodes) if not waiting[v]]
    consumers, order = dag.consumers, []
    while ready:
        node = min(
            ready, key=lambda v: (dag.sizes[v] * bool(left[v]) - sum(dag.sizes[u] for u in dag.inputs[v] if left[u] == 1), v)
        )
        ready.remove(node)
        order.append(node)
        for other in dag.inputs[node]:
            left[other] -= 1
        for reader in consumers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def _anneal(best: _Best, effort: Effort, seconds: float, clock: _Clock) -> None:
    """Anneal from the best order, or from each node run once, where none is known that fits."""
    problem = best.problem
    if not can_anneal() or best.cost == problem.dag.total_cost or effort.stop.asked or seconds <= 0:
        return
    copies = problem.copies or min(MOST_COPIES, max(ANNEALED_COPIES, _most_runs(best.runs or [])))
    start = best.runs or [Run(node=node) for node in range(problem.dag.num_nodes)]
    task = Task(dag=problem.dag, budget=problem.budget, copies=copies, free_order=not problem.fixed_order, flash=problem.flash)
    for runs in anneal(task, start, replace(effort, wall_s=min(seconds, clock.left_s))):
        best.offer(_needed(problem, runs, effort, clock))


def _play_and_evict(best: _Best, effort: Effort, clock: _Clock) -> None:
    """Move nodes within the order and change the weights of eviction; play each out; accept worse with falling probability."""
    problem, dag = best.problem, best.problem.dag
    draw, seconds = random.Random(effort.seed), effort.wall_s
    order = first_runs(best.runs) if best.runs else least_memory_order(dag)
    weights, cost = EVICTION_WEIGHTS[0], _cost_of(problem, best.runs)
    rounds = int(seconds * EVICTED * VISITS_PER_S / dag.num_nodes)
    until_s = clock.spent_s + 1.5 * EVICTED * seconds
    for number in range(rounds):
        if effort.stop.asked or best.cost == dag.total_cost or clock.spent_s > until_s:
            return
        temperature = 0.002 * dag.total_cost * (1 - number / rounds) ** 2
        candidate, other = moved(dag, order, draw), draw.choice(EVICTION_WEIGHTS) if draw.random() < 0.2 else weights
        runs = evict(dag, problem.budget, candidate, other, problem.flash)
        found = _cost_of(problem, runs)
        if found <= cost or (temperature > 0 and draw.random() < exp(min(0.0, (cost - found) / temperature))):
            order, weights, cost = candidate, other, found
            if runs is not None and found <= best.cost + temperature:
                best.offer(_needed(problem, runs, effort, clock))


def _cost_of(problem: Problem, runs: list[Run] | None) -> int:
    too_often = runs is not None and problem.copies is not None and _most_runs(runs) > problem.copies
    return 2**62 if runs is None or too_often else measure(problem.dag, runs, problem.flash).cost


def first_runs(runs: Sequence[Run]) -> list[int]:
    """The order of the nodes' first runs."""
    return list(dict.fromkeys(run.node for run in runs))


def moved(dag: Dag, order: Sequence[int], draw: random.Random) -> list[int]:
    """The order with one node somewhere else between what it reads and what reads it."""
    position = {node: at for at, node in enumerate(order)}
    node = draw.randrange(dag.num_nodes)
    low = max((position[u] + 1 for u in dag.inputs[node]), default=0)
    high = min((position[w] - 1 for w in dag.consumers[node]), default=len(order) - 1)
    rest = [other for other in order if other != node]
    rest.insert(draw.randint(low, max(low, high)), node)
    return rest


def _exact(best: _Best, seconds: float, effort: Effort, *, fixed: bool, order: list[int] | None = None) -> int:
    """Improve on the best order with the exact model, by default around the order of its first runs; returns the bound."""
    problem = best.problem
    stop = effort.stop
    if stop.asked or seconds <= 0 or problem.dag.num_nodes > LARGEST_EXACT or best.cost == problem.dag.total_cost:
        return 0
    order = order or (first_runs(best.runs) if best.runs else list(range(problem.dag.num_nodes)))
    place = {node: at for at, node in enumerate(order)}
    model = Model(problem.dag.reordered(order), problem.budget, copies=best.copies, fixed_order=fixed, flash=problem.flash)
    if best.runs is not None and first_runs(best.runs) == order:
        model.hint([Run(node=place[run.node], loaded=run.loaded) for run in best.runs])
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = WORKERS
    solver.parameters.interleave_search = True  # repeatable with several workers
    solver.parameters.random_seed = effort.seed
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.catch_sigint_signal = False
    status = stop.run(solver, model.model)
    if status == cp_model.INFEASIBLE and problem.fixed_order and problem.copies and best.runs is None and not model.rounded:
        raise InfeasibleBudget(
            f"does not fit {problem.budget} bytes in this order and {best.copies} runs of a node: raise `budget` or `copies`",
            problem.budget,
            problem.dag.least_budget,
        )
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        best.offer([Run(node=order[run.node], loaded=run.loaded) for run in model.runs(solver)])
    return int(solver.best_objective_bound) if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) and not model.rounded else 0
