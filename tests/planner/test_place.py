"""Where no plan is known to start from, one that takes little room is looked for first: found, or no error."""

from dataclasses import replace

import pytest

from mebp.models.graph import Graph
from mebp.planner.effort import Effort
from mebp.planner.solver.model import Model, most_room
from mebp.planner.solver.place import hint_least
from mebp.planner.solver.problem import Problem, pose
from mebp.sim.device import Device


@pytest.fixture(scope="module")
def problem(small_graph: Graph, device: Device) -> Problem:
    return pose(small_graph, device)


def open_model(problem: Problem) -> Model:
    """Every option of every layer, in as much room as is decided."""
    everything = [range(len(stretch.menu.options)) for stretch in problem.stretches]
    return Model(problem, everything, (0, most_room(problem)))


def test_a_plan_to_start_from_is_hinted(problem: Problem) -> None:
    model, room = open_model(problem), most_room(problem) // 4
    hint_least(model, room, Effort(deterministic_s=50.0))
    hint = model.cp.proto.solution_hint
    hinted = dict(zip(hint.vars, hint.values, strict=True))
    assert 0 < hinted[model.variables.decisions["room"].index] <= room


def test_where_nothing_is_feasible_nothing_is_hinted(problem: Problem) -> None:
    """At a quarter of a million tokens flash cannot take what every plan of a class writes."""
    model = open_model(replace(problem, flash_share=0.0))
    model.cp.add(model.variables.everywhere("store_ns") >= 1)
    hint_least(model, most_room(problem), Effort())
    assert not model.cp.proto.solution_hint.vars
