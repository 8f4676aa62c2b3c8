"""The plan language: JSON there and back, the printed listing, files that are no plan."""

from pathlib import Path

import pytest

from mebp.errors import InputError, InvalidPlan
from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.plan import SCHEMA_VERSION, dump_plan, listing, parse_plan, read_plan, require_signature
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.device import Device
from tests.conftest import small_config, small_workload

GOLDEN = Path(__file__).with_name("golden_listing.txt")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_plan_survives_json(name: str, small_graph: Graph, device: Device) -> None:
    strategy = STRATEGIES[name]
    plan = strategy.plan(strategy.graph(small_graph), device, 10**9)
    assert parse_plan(dump_plan(plan), "x") == plan


def test_the_listing_of_a_one_layer_plan_reads_as_it_always_did(device: Device) -> None:
    """Golden text: every instruction of the paper's recipe on one layer."""
    graph = build_graph(small_config(layers=1), small_workload(seq_len=8))
    printed = "\n".join(listing(STRATEGIES["mebp"].plan(graph, device, 10**9))) + "\n"
    assert printed == GOLDEN.read_text()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "x"}', '{"instructions": [{"do": "dance"}]}'])
def test_text_that_is_no_plan_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="x is not a plan") as caught:
        parse_plan(text, "x")
    assert "\n" not in str(caught.value)


def test_a_missing_plan_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read plan"):
        read_plan(tmp_path / "none.json")


def test_a_plan_of_another_version_is_refused(small_graph: Graph, device: Device) -> None:
    text = dump_plan(STRATEGIES["sqrt"].plan(small_graph, device, 10**9))
    text = text.replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":9')
    with pytest.raises(InputError, match="schema_version 9"):
        parse_plan(text, "x")


def test_a_plan_for_another_graph_is_refused(small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES["sqrt"].plan(small_graph, device, 10**9)
    other = build_graph(small_config(), small_workload(seq_len=32))
    with pytest.raises(InvalidPlan, match="same graph"):
        require_signature(plan, other.signature, "the model at hand")
