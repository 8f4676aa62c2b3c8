"""Reading graphs: what is refused, in one line that names node, value and bound."""

import json
from pathlib import Path
from typing import Any

import pytest

from mebp.errors import GraphError
from mebp.planner.dag.graph import parse_dag, read_dag


def node(number: int, **changes: Any) -> dict[str, Any]:
    fields = {"id": number, "cost_cpu": 3, "cost_ram": 5} | changes
    return {key: value for key, value in fields.items() if value is not None}


def linked(nodes: list[Any], *links: tuple[int, int]) -> dict[str, Any]:
    return {"nodes": nodes, "links": [{"source": u, "target": v} for u, v in links]}


def test_a_graph_is_put_in_topological_order() -> None:
    dag = parse_dag(linked([node(0), node(1)], (1, 0)), "x")
    assert dag.ids == (1, 0)
    assert dag.inputs == ((), (0,))
    assert dag.total_cost == 6
    assert dag.least_budget == 10


def test_an_order_that_is_one_is_kept() -> None:
    dag = parse_dag(linked([node(0), node(2), node(1)], (0, 2), (0, 1)), "x")
    assert dag.ids == (0, 2, 1)


def test_ids_that_print_alike_stay_apart() -> None:
    dag = parse_dag({"nodes": [node(0), node(1) | {"id": "0"}], "links": []}, "x")
    assert dag.ids == (0, "0")


def test_fractional_costs_are_counted_in_small_parts() -> None:
    dag = parse_dag(linked([node(0, cost_cpu=0.125), node(1, cost_cpu=3.5)], (0, 1)), "x")
    assert dag.costs == (125_000_000, 3_500_000_000)
    assert dag.in_file_units(dag.total_cost) == 3.625


def test_whole_costs_are_counted_in_small_parts_where_asked() -> None:
    assert parse_dag(linked([node(0)]), "x").costs == (3,)
    fine = parse_dag(linked([node(0)]), "x", fine=True)
    assert fine.costs[0] > 10**8
    assert fine.in_file_units(fine.total_cost) == 3


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], "node-link"),
        ({"nodes": []}, "neither links nor edges"),
        ({"nodes": [], "links": []}, "no nodes"),
        (linked([node(0), node(1)], (0, 1), (1, 0)), "cycle"),
        (linked([node(0)], (0, 7)), "link"),
        (linked([node(0), node(0)]), "that no other has"),
        (linked([node(0, cost_cpu=None)]), "has no cost_cpu"),
        (linked([node(0, cost_ram=-1)]), "cost_ram = -1"),
        (linked([node(0, cost_ram=1.5)]), "cost_ram = 1.5"),
        (linked([node(0, cost_cpu="much")]), "'much'"),
        (linked([node(0, cost_cpu=float("nan"))]), "nan"),
        (linked(["x"]), "an object"),
        (linked([node(0)]) | {"directed": False}, "directed = False"),
        (linked([node(0), node(1)], (0, 1)) | {"edges": [{"source": 0, "target": 1}]}, "both links and edges"),
        (linked([node(0, cost_cpu=1e-300)]), "1e-300: must be 0, or 1e-30 at least"),
        (linked([node(0, cost_cpu=10**60)]), "must be a number from 0"),
        (linked([node(n) for n in range(5000)], *((n, (n + 1) % 5000) for n in range(5000))), "4994 more"),
        (linked([node("x" * 10**5, cost_cpu=None)]), "has no cost_cpu"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_graph_is_refused(raw: Any, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse_dag(raw, "g.json")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_edges_count_where_links_are_empty() -> None:
    raw = linked([node(0), node(1)]) | {"edges": [{"source": 0, "target": 1}]}
    assert parse_dag(raw, "x").inputs == ((), (0,))


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_text_that_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(text, encoding="latin-1")
    with pytest.raises(GraphError, match=r"g\.json"):
        read_dag(tmp_path / "g.json")


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(linked([node(0), node(1)], (0, 1))))
    assert read_dag(tmp_path / "g.json").num_nodes == 2
