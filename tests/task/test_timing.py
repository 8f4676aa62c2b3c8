"""What calibration reads off runs: rates at one speed, streaming as it is, and every shape as it was."""

from dataclasses import replace
from typing import Any

import pytest

from mebp.executor.measure.job import Measurement
from mebp.models.build import build_graph
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.op import Part, Rate
from mebp.models.workload import Lora
from mebp.plan import Compute, Plan
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.cost import CostModel
from mebp.sim.device import FRACTIONS, SHAPE_FACTOR, Device
from mebp.sim.shape import knows
from mebp.task.calibrate import calibration_plans
from mebp.task.timing import Runs, Timed, at_speed_of, attained, shape_factors, streaming_s_per_weight
from tests.conftest import small_config, small_workload
from tests.sim.test_shape import machine

NAMES = ("streamed", "resident", "whole")
RUN = Measurement(arena_bytes=0, baseline_bytes=0, peak_bytes=0, file_bytes=0, step_s=(1.0,), loss=(0.0,), spans_ns=(), floor_s=0.1)


def test_runs_are_compared_at_one_speed() -> None:
    slow = replace(RUN, floor_s=0.2, durations_ns=(100, 200))
    assert at_speed_of(slow, RUN).durations_ns == (50, 100)
    assert at_speed_of(slow, RUN, work=0.25).durations_ns == (200, 400), "the other has a quarter of its products"


def test_streaming_is_what_products_take_above_unpacked_ones(small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES["checkpoint-1"].plan(small_graph, device, 0)
    rates = {Rate.FORWARD_PRODUCT: 1e9, Rate.BACKWARD_PRODUCT: 1e9}
    durations, weights = [], 0
    for instruction in plan.instructions:
        op = small_graph.op[instruction.op] if isinstance(instruction, Compute) else None
        if op is None or op.kind.rate not in rates or not op.weights:
            durations.append(0)
            continue
        weights += small_graph.weights[op.weights[0]].count
        durations.append(op.kind.flops(op) + 1000)
    timed = Timed(graph=small_graph, plan=plan, run=replace(RUN, durations_ns=tuple(durations)))
    assert streaming_s_per_weight(timed, rates) == pytest.approx(1e-6 * sum(ns > 0 for ns in durations) / weights)
    faster = replace(timed, run=replace(RUN, durations_ns=tuple(ns // 2 for ns in durations)))
    assert streaming_s_per_weight(faster, rates) == 0


def timed_on(graph: Graph, plan: Plan, device: Device) -> Timed:
    """A run without noise: every instruction takes what the machine needs, its launch not counted."""
    cost = CostModel(graph, device)
    busy = [max(1, sum(ns for part, ns in cost.parts(i).items() if part is not Part.LAUNCH)) for i in plan.instructions]
    return Timed(graph=graph, plan=plan, run=replace(RUN, durations_ns=tuple(busy)))


@pytest.mark.parametrize(
    ("config", "workload"),
    [
        ({"vocab": 9000, "hidden": 512, "ffn": 1024, "num_heads": 8, "head_dim": 64}, {"seq_len": 128}),
        ({"layers": 1}, {}),
        ({"vocab": 4000}, {"lora": Lora(rank=4, targets=("v", "down"))}),
        ({}, {"weights": weight_formats("bf16")}),
        ({"windows": (16, 0, 16, 0)}, {"precision": "fp32", "weights": weight_formats("ternary"), "batch_size": 2}),
    ],
)
def test_rates_and_shapes_read_off_three_runs_predict_them(
    config: dict[str, Any], workload: dict[str, Any], device: Device
) -> None:
    """Whatever the machine takes for each shape, the profile that is read off its runs times their plans as they were."""
    graph = build_graph(small_config(**config), small_workload(**workload))
    plans = calibration_plans(graph)
    there = machine(graph, device)
    runs = Runs(**{name: timed_on(graph, getattr(plans, name), there) for name in NAMES})
    found = attained(runs)
    peak = device.hardware.product_flops / (device.runtime.fp32_factor if graph.workload.precision == "fp32" else 1.0)
    runtime = replace(
        device.runtime,
        **{name: found.rates[rate] / peak for rate, name in FRACTIONS.items()},
        bandwidth_fraction=found.rates[Rate.MEMORY] / device.hardware.memory_bandwidth,
        unpack_rate=found.unpack,
    )
    profile = replace(device, runtime=runtime)
    profile = replace(profile, shapes=shape_factors(profile, runs))
    assert knows(profile, graph)
    for one in (runs.streamed, runs.resident, runs.whole):
        again = timed_on(graph, one.plan, profile)
        assert sum(again.run.durations_ns) == pytest.approx(sum(one.run.durations_ns), rel=5e-3)


def test_factors_stay_within_what_a_profile_may_hold(small_graph: Graph, device: Device) -> None:
    """Where streaming seems to cost less than nothing, or a tile of logits thousands of passes, the bound is written."""
    plans = calibration_plans(small_graph)
    runs = {name: timed_on(small_graph, getattr(plans, name), machine(small_graph, device)) for name in NAMES}
    noisy = {"streamed": 0.01, "resident": 1e9, "whole": 1.0}
    scaled = {
        name: replace(one, run=replace(one.run, durations_ns=tuple(round(ns * noisy[name]) for ns in one.run.durations_ns)))
        for name, one in runs.items()
    }
    factors = shape_factors(device, Runs(**scaled)).values()
    assert (min(factors), max(factors)) == SHAPE_FACTOR
