"""What calibration reads off runs: rates at one speed, streaming as it is; and the curve of memory over a step."""

from dataclasses import replace

import pytest

from mebp.executor.calibrate import _at_speed_of, _num_layers, _streaming
from mebp.executor.floor import floor_seconds
from mebp.executor.measure import MOST_POINTS, Sampler
from mebp.executor.worker import Measurement
from mebp.models.build import build_graph
from mebp.models.config import LINEARS
from mebp.models.graph import Graph
from mebp.models.kind import KINDS, dense_flops
from mebp.plan import Compute
from mebp.planner.strategies import STRATEGIES
from mebp.sim.cost import floor_ns
from mebp.sim.device import Device
from tests.conftest import small_config, small_workload

RUN = Measurement(arena_bytes=0, baseline_bytes=0, peak_bytes=0, file_bytes=0, step_s=(1.0,), loss=(0.0,), spans_ns=(), floor_s=0.1)


def test_dense_products_are_those_with_frozen_weights(small_graph: Graph, device: Device) -> None:
    """Forward and, but for the lowest layer's q, k and v, backward; the head forward and backward."""
    config, tokens = small_graph.config, small_graph.workload.tokens
    layer = sum(rows * cols for rows, cols in map(config.linear_shape, LINEARS))
    lowest = sum(rows * cols for rows, cols in (config.linear_shape(name) for name in ("q", "k", "v")))
    products = 2 * config.num_layers * layer - lowest + 2 * config.vocab * config.hidden
    assert dense_flops(small_graph.ops) == 2 * tokens * products
    assert floor_ns(small_graph, device) == pytest.approx(dense_flops(small_graph.ops) / device.hardware.product_flops * 1e9)
    assert floor_seconds(small_graph) > 0


def test_runs_are_compared_at_one_speed() -> None:
    slow = replace(RUN, floor_s=0.2, spans_ns=((0, 100), (100, 300)))
    assert _at_speed_of(slow, RUN).spans_ns == ((0, 50), (50, 150))


def test_streaming_is_what_products_take_above_unpacked_ones(small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES["checkpoint-1"].plan(small_graph, device, 0)
    rates = {"linear": 1e9, "linear_backward": 1e9}
    spans, weights = [], 0
    for instruction in plan.instructions:
        op = small_graph.op[instruction.op] if isinstance(instruction, Compute) else None
        streamed = op is not None and op.kind in rates and isinstance(instruction, Compute) and instruction.streamed
        if op is None or not streamed:
            spans.append((0, 0))
            continue
        weights += small_graph.weights[op.weights[0]].count
        spans.append((0, KINDS[op.kind].flops(op) + 1000))
    seconds, counted = _streaming(small_graph, plan, replace(RUN, spans_ns=tuple(spans)), rates)
    assert counted == weights
    assert seconds == pytest.approx(1e-6 * sum(end > 0 for _, end in spans))
    faster = tuple((start, end // 2) for start, end in spans)
    assert _streaming(small_graph, plan, replace(RUN, spans_ns=faster), rates) == (0.0, 0)


def test_layers_are_taken_until_no_cache_holds_them() -> None:
    config, workload = small_config(), small_workload()
    assert _num_layers(config, workload) == config.num_layers
    wide = replace(config, hidden=8192, ffn=32768, windows=(0,) * 9)
    assert _num_layers(wide, workload) == 2
    assert build_graph(config, workload).config.num_layers == config.num_layers


def test_the_curve_of_memory_thins_out_as_it_grows() -> None:
    sampler = Sampler()
    sampler.begin()
    for number in range(3 * MOST_POINTS):
        sampler._draw(sampler._next_ns, number)
    times = [ns for ns, _ in sampler.curve]
    assert MOST_POINTS // 2 <= len(times) <= MOST_POINTS
    assert times == sorted(times)
    assert times[0] == 0
    sampler.begin()
    assert sampler.curve == []
