"""The checker of orders, by hand."""

import pytest

from mebp.errors import InvalidPlan
from mebp.planner.dag.graph import Dag
from mebp.planner.dag.order import Flash, Run, measure

# 0 -> 1 -> 2, and 2 reads 0 too
CHAIN = Dag(ids=("a", "b", "c"), costs=(5, 7, 9), sizes=(10, 20, 40), inputs=((), (0,), (0, 1)))


def runs(*nodes: int) -> list[Run]:
    return [Run(node=node) for node in nodes]


def test_a_result_lives_until_its_last_use() -> None:
    found = measure(CHAIN, runs(0, 1, 2))
    assert (found.cost, found.peak, found.peak_at) == (21, 70, 2)


def test_a_result_made_again_is_gone_in_between() -> None:
    wide = Dag(ids=("a", "b", "c", "d"), costs=(1, 1, 1, 1), sizes=(10, 50, 1, 1), inputs=((), (), (1,), (0, 2)))
    assert measure(wide, runs(0, 1, 2, 3)).peak == 61
    again = measure(wide, runs(0, 1, 2, 0, 3))
    assert (again.peak, again.cost) == (51, 5)


def test_a_load_costs_its_transfer_and_one_write() -> None:
    order = [*runs(0, 1), Run(node=0, loaded=True), *runs(2)]
    assert measure(CHAIN, order, Flash(bytes_per_cost=4)).cost == 21 + 3 + 3


@pytest.mark.parametrize(
    ("order", "rule"),
    [
        (runs(0, 1), "every node runs"),
        (runs(1, 0, 2), "inputs come first"),
        ([Run(node=0, loaded=True), *runs(0, 1, 2)], "load only what was made"),
        ([*runs(0), Run(node=0, loaded=True), *runs(1, 2)], "loads need flash"),
    ],
)
def test_a_broken_rule_is_named(order: list[Run], rule: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        measure(CHAIN, order)
    assert caught.value.rule == rule
