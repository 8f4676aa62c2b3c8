"""The graph solver: equal to brute force on tiny graphs, to proven optima on published ones, good on large ones."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.planner.dag.anneal import NEVER, Task, anneal, can_anneal
from mebp.planner.dag.evict import EvictionWeights, drop_needless, evict
from mebp.planner.dag.graph import Dag, read_dag
from mebp.planner.dag.order import Flash, Run, measure
from mebp.planner.dag.solve import Problem, least_memory_order, moved, solve_dag
from mebp.planner.effort import Effort
from tests.planner.dag.brute import least_cost

COPIES = 4  # more than any optimum of six nodes was seen to need
PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "graphs"


def allowed(seconds: float) -> Effort:
    return Effort(wall_s=seconds)


@st.composite
def dags(draw: st.DrawFn, most: int = 6) -> Dag:
    """Any graph of up to `most` nodes."""
    n = draw(st.integers(1, most))
    numbers = st.lists(st.integers(1, 6), min_size=n, max_size=n)
    inputs = tuple(tuple(u for u in range(v) if draw(st.booleans())) for v in range(n))
    return Dag(ids=tuple(map(str, range(n))), costs=tuple(draw(numbers)), sizes=tuple(draw(numbers)), inputs=inputs)


def training(num_forward: int, seed: int) -> Dag:
    """A random forward with short skips, and its backward in reverse: node v's reads what v read, v, and its readers' gradients."""
    draw = random.Random(seed)
    forward = [tuple(sorted({v - 1, draw.randrange(max(0, v - 8), v)})) if v else () for v in range(num_forward)]
    readers: list[list[int]] = [[] for _ in forward]
    for v, reads in enumerate(forward):
        for u in reads:
            readers[u].append(v)
    last = 2 * num_forward - 1
    backward = [tuple(sorted({*forward[v], v, *(last - w for w in readers[v])})) for v in reversed(range(num_forward))]
    costs, sizes = ([draw.randint(1, 99) for _ in forward] for _ in range(2))
    return Dag(
        ids=tuple(map(str, range(last + 1))),
        costs=(*costs, *(2 * cost for cost in reversed(costs))),
        sizes=(*sizes, *reversed(sizes)),
        inputs=(*forward, *backward),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(dag=dags(), spare=st.integers(0, 8), fixed=st.booleans())
def test_the_solver_equals_brute_force_on_every_small_graph(dag: Dag, spare: int, fixed: bool) -> None:
    budget = dag.least_budget + spare
    best = least_cost(dag, budget, copies=COPIES, fixed_order=fixed)
    question = Problem(dag=dag, budget=budget, fixed_order=fixed, copies=COPIES)
    if best is None:
        with pytest.raises((InfeasibleBudget, NoPlanInTime)):
            solve_dag(question, allowed(20))
        return
    found = solve_dag(question, allowed(20))
    assert found.measured.cost == best
    assert found.measured.peak <= budget
    assert found.bound <= best


def test_below_the_largest_working_set_nothing_fits() -> None:
    dag = training(5, 0)
    with pytest.raises(InfeasibleBudget, match=str(dag.least_budget)):
        solve_dag(Problem(dag=dag, budget=dag.least_budget - 1), allowed(5))


def test_sizes_that_have_to_be_rounded_prove_nothing() -> None:
    """2^32 + 2 bytes in units of one: rounded sizes say that nothing fits, and something does."""
    g = 2**30
    dag = Dag(
        ids=tuple("abcdefg"),
        costs=(8, 3, 18, 14, 2, 27, 19),
        sizes=(g, 3 * g, 3 * g + 1, g, g, 2 * g + 1, g),
        inputs=((), (0,), (0,), (1,), (1,), (0,), (0, 3)),
    )
    try:
        found = solve_dag(Problem(dag=dag, budget=4 * g + 2, fixed_order=True), allowed(5))
        assert found.bound <= 116
    except NoPlanInTime:
        pass  # not found, and not called impossible


@pytest.mark.slow
def test_flash_is_used_where_it_is_cheaper_than_running_again() -> None:
    dag = training(10, 3)
    budget = int(measure(dag, [Run(node=v) for v in range(dag.num_nodes)]).peak * 0.6)
    dry = solve_dag(Problem(dag=dag, budget=budget, fixed_order=True), allowed(10))
    paged = solve_dag(Problem(dag=dag, budget=budget, fixed_order=True, flash=Flash(bytes_per_cost=1e4)), allowed(10))
    assert any(run.loaded for run in paged.runs)
    assert paged.measured.cost < dry.measured.cost


@pytest.mark.slow
def test_a_free_order_is_never_worse_than_the_fixed_one() -> None:
    dag = training(15, 4)
    budget = int(measure(dag, [Run(node=v) for v in range(dag.num_nodes)]).peak * 0.75)
    fixed, free = (solve_dag(Problem(dag=dag, budget=budget, fixed_order=f), allowed(12)) for f in (True, False))
    assert free.measured.cost <= fixed.measured.cost


@given(dag=dags(12), seed=st.integers(0, 99))
def test_orders_stay_topological(dag: Dag, seed: int) -> None:
    order = least_memory_order(dag)
    for candidate in (order, moved(dag, order, random.Random(seed))):
        position = {node: at for at, node in enumerate(candidate)}
        assert sorted(candidate) == list(range(dag.num_nodes))
        assert all(position[u] < position[v] for v in range(dag.num_nodes) for u in dag.inputs[v])


def test_eviction_keeps_within_any_budget_that_it_accepts() -> None:
    dag = training(100, 1)
    peak = measure(dag, [Run(node=v) for v in range(dag.num_nodes)]).peak
    for part in (0.9, 0.7, 0.5):
        runs = evict(dag, int(peak * part), list(range(dag.num_nodes)), EvictionWeights())
        assert runs is not None
        assert measure(dag, runs).peak <= peak * part


needs_compiler = pytest.mark.skipif(not can_anneal(), reason="no C compiler")


def layered(num_forward: int, width: int, seed: int) -> Dag:
    """A wide layered forward, each node reading up to three of the layer before, and its backward in reverse."""
    draw = random.Random(seed)
    forward: list[tuple[int, ...]] = []
    for v in range(num_forward):
        low = (v // width - 1) * width
        forward.append(tuple(sorted(draw.sample(range(low, low + width), draw.randint(1, 3)))) if low >= 0 else ())
    readers: list[list[int]] = [[] for _ in forward]
    for v, reads in enumerate(forward):
        for u in reads:
            readers[u].append(v)
    last = 2 * num_forward - 1
    backward = [tuple(sorted({*forward[v], v, *(last - w for w in readers[v])})) for v in reversed(range(num_forward))]
    costs, sizes = ([draw.randint(1, 50) for _ in range(last + 1)] for _ in range(2))
    return Dag(ids=tuple(map(str, range(last + 1))), costs=tuple(costs), sizes=tuple(sizes), inputs=(*forward, *backward))


@needs_compiler
@pytest.mark.parametrize(("part", "over"), [(0.9, 0.02), (0.8, 0.04)])
def test_a_wide_layered_graph_in_its_order_with_two_runs_a_node_gets_a_good_order(part: float, over: float) -> None:
    dag = layered(125, 15, 0)
    budget = int(part * measure(dag, [Run(node=v) for v in range(dag.num_nodes)]).peak)
    found = solve_dag(Problem(dag=dag, budget=budget, fixed_order=True, copies=2), allowed(8))
    assert found.measured.peak <= budget
    assert found.measured.cost <= (1 + over) * dag.total_cost
    assert max(Counter(run.node for run in found.runs).values()) <= 2
    assert list(dict.fromkeys(run.node for run in found.runs)) == list(range(dag.num_nodes))


@needs_compiler
def test_annealing_goes_from_an_order_that_does_not_fit_to_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mebp.planner.dag.anneal.VISITS_PER_S", 25e6)  # a tenth: the clock ends no search
    dag = layered(60, 10, 1)
    start = [Run(node=v) for v in range(dag.num_nodes)]
    budget = int(0.85 * measure(dag, start).peak)
    for free in (False, True):
        for flash in (None, Flash(bytes_per_cost=5.0)):
            task = Task(dag=dag, budget=budget, copies=2, free_order=free, flash=flash)
            found = anneal(task, start, allowed(0.5))
            assert found
            assert found == anneal(task, start, allowed(0.5))  # the same input gives the same order
            for runs in found:
                assert measure(dag, runs, flash).peak <= budget
                assert max(Counter(run.node for run in runs).values()) <= 2


def test_a_budget_that_only_full_recomputation_meets_is_met() -> None:
    """A chain and its backward, twelve results of ten bytes, each read again: in thirty bytes all is recomputed from scratch."""
    n = 12
    forward = [(v - 1,) if v else () for v in range(n)]
    backward = [tuple(sorted({*((n + at - 1,) if at else ()), n - 1 - at})) for at in range(n)]
    dag = Dag(ids=tuple(range(2 * n)), costs=(1,) * (2 * n), sizes=(10,) * (2 * n), inputs=(*forward, *backward))
    assert dag.least_budget == 30
    for fixed in (True, False):
        found = solve_dag(Problem(dag=dag, budget=30, fixed_order=fixed), allowed(5))
        assert found.measured.peak <= 30


def test_a_chain_of_thousands_is_recomputed_without_recursion() -> None:
    n = 3000
    inputs = tuple((v - 1,) if v else () for v in range(n - 1))
    dag = Dag(ids=tuple(range(n)), costs=(1,) * n, sizes=(1,) * n, inputs=(*inputs, (0, n - 2)))
    runs = evict(dag, 3, list(range(n)), EvictionWeights(), most_runs=100_000)
    assert runs is not None
    assert measure(dag, runs).peak <= 3


def test_nothing_more_is_taken_out_when_the_time_is_over() -> None:
    """A budget that only full recomputation meets makes thousands of runs, and looking at each takes time of its own."""
    dag = training(40, 3)
    runs = [Run(node=v) for v in range(dag.num_nodes) for _ in range(2)]
    asked: list[None] = []

    def over() -> bool:
        asked.append(None)
        return len(asked) > 3

    peak = measure(dag, runs).peak
    assert len(drop_needless(dag, peak, runs, over=over)) == len(runs) - 3


@needs_compiler
def test_a_transfer_that_costs_more_than_any_order_is_not_made() -> None:
    dag = layered(60, 10, 1)
    start = [Run(node=v) for v in range(dag.num_nodes)]
    budget = int(0.85 * measure(dag, start).peak)
    flash = Flash(bytes_per_cost=1e-18)
    assert flash.cost(max(dag.sizes)) > NEVER
    task = Task(dag=dag, budget=budget, copies=2, free_order=False, flash=flash)
    for runs in anneal(task, start, allowed(0.5)):
        assert measure(dag, runs, flash).peak <= budget
        assert not any(run.loaded for run in runs)


@pytest.mark.slow
def test_a_thousand_nodes_get_a_good_order() -> None:
    dag = training(500, 2)
    peak = measure(dag, [Run(node=v) for v in range(dag.num_nodes)]).peak
    found = solve_dag(Problem(dag=dag, budget=int(peak * 0.8)), allowed(20))
    assert found.measured.peak <= peak * 0.8
    assert found.measured.cost <= 1.05 * dag.total_cost


def published() -> list[dict[str, object]]:
    file = PUBLISHED / "reference_fixed_order.json"
    return json.loads(file.read_text()) if file.is_file() else []


@pytest.mark.slow
@pytest.mark.skipif(not published(), reason="published instances lie in shared/data only")
@pytest.mark.parametrize("case", published(), ids=lambda case: f"{case['graph']}-{case['budget']}")
def test_proven_optima_of_published_graphs_are_met_in_their_order(case: dict[str, object]) -> None:
    dag = read_dag(PUBLISHED / str(case["graph"]))
    question = Problem(dag=dag, budget=int(str(case["budget"])), fixed_order=True)
    found = solve_dag(question, allowed(30))
    assert found.measured.cost - dag.total_cost <= int(str(case["extra_cost"]))
