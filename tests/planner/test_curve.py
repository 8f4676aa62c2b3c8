"""The trade-off curve: from the least budget to keep-all, never slower with more memory, every point within its budget."""

import itertools
from dataclasses import replace

import pytest

from mebp.models.graph import Graph
from mebp.planner.curve import curve, saved_ns_per_byte
from mebp.planner.effort import Effort, Stop
from mebp.planner.tiling import tilings
from mebp.sim.device import Device

QUICK = Effort(deterministic_s=0.2)


def test_more_memory_is_never_slower_and_each_point_fits(qwen_graph: Graph, device: Device) -> None:
    points = curve(tilings(qwen_graph, device), QUICK, 5)
    assert len(points) == 5
    steps = [point.prediction.step_ns for point in points]
    assert steps == sorted(steps, reverse=True)
    assert all(point.prediction.peak_bytes <= point.budget_bytes for point in points)
    assert all(point.bound_ns <= point.prediction.step_ns for point in points)
    assert steps[-1] < steps[0]


@pytest.mark.slow
def test_what_a_byte_saves_adds_up_to_what_the_curve_saves(small_graph: Graph, device: Device) -> None:
    points = curve(tilings(small_graph, device), QUICK, 4)
    gaps = [after.budget_bytes - before.budget_bytes for before, after in itertools.pairwise(points)]
    saved = sum(price * gap for price, gap in zip(saved_ns_per_byte(points)[1:], gaps, strict=True))
    assert round(saved) == points[0].prediction.step_ns - points[-1].prediction.step_ns


@pytest.mark.slow
def test_a_stop_ends_it_with_the_points_so_far(small_graph: Graph, device: Device) -> None:
    effort = replace(QUICK, stop=Stop())
    points = curve(tilings(small_graph, device), effort, 6, progress=lambda number: effort.stop.ask() if number == 2 else None)
    assert 1 <= len(points) <= 2
