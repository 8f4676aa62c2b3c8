"""Where no plan is known to start from, one that takes little room is looked for first: found, or no error."""

from ortools.sat.python import cp_model

from mebp.planner.solver.place import _hint_least
from mebp.planner.solver.search import Effort


def test_a_plan_to_start_from_is_hinted() -> None:
    model = cp_model.CpModel()
    room = model.new_int_var(0, 100, "room")
    model.add(room >= 7)
    _hint_least(model, room, 50, Effort())
    (hinted,) = model.proto.solution_hint.values
    assert 7 <= hinted <= 50


def test_where_nothing_is_feasible_nothing_is_hinted() -> None:
    """At a quarter of a million tokens flash cannot take what every plan of a class writes."""
    model = cp_model.CpModel()
    room = model.new_int_var(0, 100, "room")
    model.add(room >= 101)
    _hint_least(model, room, 50, Effort())
    assert not model.proto.solution_hint.values
