"""Knobs and the outline: bounds that hold, and changes that change what they should."""

from dataclasses import replace
from itertools import pairwise

import pytest

from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.planner.curve import outline
from mebp.planner.effort import Effort, Stop
from mebp.planner.knob import Change, knobs
from mebp.planner.tiling import tilings
from mebp.planner.tradeoff import remedies, tradeoff
from mebp.sim.device import Device
from mebp.sim.simulate import simulate
from tests.plans import leanest, posed, solved

QUICK = Effort(deterministic_s=0.2)


@pytest.mark.slow
def test_no_solved_plan_is_faster_than_the_outline(small_graph: Graph, device: Device) -> None:
    problem = posed(small_graph, device)
    least = simulate(leanest(problem, QUICK), small_graph, device).peak_bytes
    corners = outline(tilings(small_graph, device), least, 0, 5)
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
    assert sizes["int4-g64"] < asked.weight_file_bytes < sizes["int4"]


def stop_at_weights(effort: Effort, change: Change | None) -> None:
    if change and change.setting == "weights":
        effort.stop.ask()


def test_a_stop_ends_it_with_what_there_is(small_graph: Graph, device: Device) -> None:
    effort = replace(QUICK, stop=Stop())
    found = knobs(small_graph, device, 10**9, effort, lambda change: stop_at_weights(effort, change))
    assert 1 <= len(found) <= 4  # what is under way may still end


@pytest.mark.slow
def test_what_does_not_fit_comes_with_settings_that_do(small_graph: Graph, device: Device) -> None:
    graph = build_graph(small_graph.config, replace(small_graph.workload, seq_len=1024))
    least = tradeoff(graph, device, 10**9, QUICK).least_budget_bytes
    budget = (least + int(device.runtime.footprint_bytes)) // 2
    found = tradeoff(graph, device, budget, QUICK)
    assert found.chosen is None
    fitting = remedies(found, QUICK)
    assert fitting
    assert fitting[0].change is not None
    assert fitting[0].change.setting == "seq_len"
    for knob in fitting:
        assert knob.least_budget_bytes <= budget
    length = int(fitting[0].change.value)
    shorter, longer = (replace(graph.workload, seq_len=tokens) for tokens in (length, length * 2))
    assert tradeoff(build_graph(graph.config, shorter), device, budget, QUICK).chosen is not None
    assert tradeoff(build_graph(graph.config, longer), device, budget, QUICK).chosen is None


def test_nothing_is_offered_where_the_runtime_alone_is_too_much(small_graph: Graph, device: Device) -> None:
    found = tradeoff(small_graph, device, 10_000, QUICK)
    assert remedies(found, QUICK) == ()


def test_without_time_it_is_not_said_that_nothing_fits(small_graph: Graph, device: Device) -> None:
    found = tradeoff(small_graph, device, int(device.runtime.footprint_bytes) + 1000, QUICK)
    assert found.chosen is None
    assert remedies(found, replace(QUICK, until=0.0)) is None


@pytest.mark.slow
def test_the_longest_sequence_fits_and_a_longer_one_does_not(small_graph: Graph, device: Device) -> None:
    asked, *changes = knobs(small_graph, device, budget := 80 * 10**6, QUICK)
    longest = changes[-1]
    assert longest.change is not None
    assert longest.change.setting == "seq_len"
    length = int(longest.change.value)
    assert length > small_graph.workload.seq_len
    assert asked.least_budget_bytes < longest.least_budget_bytes <= budget
    longer = build_graph(small_graph.config, replace(small_graph.workload, seq_len=round(1.1 * length)))
    step = tilings(longer, device)
    assert step.footprint(step.least(0, QUICK)) > budget
