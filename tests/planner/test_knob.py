"""Knobs and the outline: bounds that hold, and changes that change what they should."""

from dataclasses import replace
from itertools import pairwise

import pytest

from mebp.models.graph import Graph
from mebp.planner.curve import outline
from mebp.planner.effort import Effort, Stop
from mebp.planner.knob import Change, knobs
from mebp.planner.tradeoff import remedies, tradeoff
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena
from mebp.sim.simulate import simulate
from tests.plans import leanest, posed, solved

QUICK = Effort(deterministic_s=0.2)


@pytest.mark.slow
def test_no_solved_plan_is_faster_than_the_outline(small_graph: Graph, device: Device) -> None:
    problem = posed(small_graph, device)
    least = simulate(leanest(problem, QUICK), small_graph, device).peak_bytes
    corners = outline(problem, least, 0, 5)
    assert [corner.budget_bytes for corner in corners] == sorted({corner.budget_bytes for corner in corners})
    assert all(before.best_step_ns >= after.best_step_ns for before, after in pairwise(corners))
    for corner in corners:
        assert corner.best_step_ns <= simulate(solved(problem, corner.budget_bytes, QUICK), small_graph, device).step_ns


def test_half_the_tokens_take_less_time_and_memory(small_graph: Graph, device: Device) -> None:
    asked, *changes = knobs(small_graph, device, 10**9, QUICK)
    assert asked.change is None
    half = next(knob for knob in changes if knob.change == Change(setting="seq_len", value=small_graph.workload.seq_len // 2))
    assert half.least_budget_bytes < asked.least_budget_bytes
    assert half.best_step_ns is not None
    assert asked.best_step_ns is not None
    assert half.best_step_ns < asked.best_step_ns
    dry = next(knob for knob in changes if knob.change == Change(setting="max_flash_write", value=0))
    assert dry.least_budget_bytes >= asked.least_budget_bytes


@pytest.mark.slow
def test_other_formats_change_the_weights_file(small_graph: Graph, device: Device) -> None:
    asked, *changes = knobs(small_graph, device, 10**9, QUICK)
    sizes = {knob.change.value: knob.weight_file_bytes for knob in changes if knob.change and knob.change.setting == "weights"}
    assert sizes["int4-g64"] < asked.weight_file_bytes < sizes["int8"]


def stop_at_weights(effort: Effort, change: Change | None) -> None:
    if change and change.setting == "weights":
        effort.stop.ask()


def test_a_stop_ends_it_with_what_there_is(small_graph: Graph, device: Device) -> None:
    effort = replace(QUICK, stop=Stop())
    found = knobs(small_graph, device, 10**9, effort, lambda change: stop_at_weights(effort, change))
    assert 1 <= len(found) <= 4  # what is under way may still end


@pytest.mark.slow
def test_what_does_not_fit_comes_with_remedies_that_lower_the_least_budget(small_graph: Graph, device: Device) -> None:
    found = tradeoff(small_graph, device, outside_arena(small_graph, device) + 1, QUICK)
    assert found.chosen is None
    lower = remedies(found, QUICK)
    assert lower
    assert all(knob.least_budget_bytes < found.least_budget_bytes for knob in lower)
