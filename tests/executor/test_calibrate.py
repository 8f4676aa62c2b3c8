"""What calibration reads off runs: rates at one speed, streaming as it is; and the curve of memory over a step."""

from dataclasses import replace

import pytest

from mebp.cli.device import _plans
from mebp.executor.calibrate import _few_layers
from mebp.executor.floor import floor_seconds
from mebp.executor.measure import MOST_POINTS, Sampler
from mebp.executor.rates import Runs, Timed, at_speed_of, attained, shape_factors, streaming
from mebp.executor.worker import Measurement
from mebp.models.build import build_graph
from mebp.models.config import LINEARS
from mebp.models.graph import Graph
from mebp.models.kind import KINDS, Part, dense_flops
from mebp.plan import Compute, Plan
from mebp.planner.strategies import STRATEGIES
from mebp.sim.cost import CostModel, floor_ns
from mebp.sim.device import Device
from mebp.sim.shape import head_tile_of, knows, remember, shape_of, unpacked_shape
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
    slow = replace(RUN, floor_s=0.2, durations_ns=(100, 200))
    assert at_speed_of(slow, RUN).durations_ns == (50, 100)


def test_streaming_is_what_products_take_above_unpacked_ones(small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES["checkpoint-1"].plan(small_graph, device, 0)
    rates = {"linear": 1e9, "linear_backward": 1e9}
    durations, weights = [], 0
    for instruction in plan.instructions:
        op = small_graph.op[instruction.op] if isinstance(instruction, Compute) else None
        if op is None or op.kind not in rates or not op.weights:
            durations.append(0)
            continue
        weights += small_graph.weights[op.weights[0]].count
        durations.append(KINDS[op.kind].flops(op) + 1000)
    timed = Timed(graph=small_graph, plan=plan, run=replace(RUN, durations_ns=tuple(durations)))
    seconds, counted = streaming(timed, rates)
    assert counted == weights
    assert seconds == pytest.approx(1e-6 * sum(ns > 0 for ns in durations))
    faster = replace(timed, run=replace(RUN, durations_ns=tuple(ns // 2 for ns in durations)))
    assert streaming(faster, rates) == (0.0, 0)


def machine(graph: Graph, device: Device) -> Device:
    """A machine where every shape takes some times what the rates of `device` say."""
    shapes = {shape_of(op): 0.5 + (7 * number % 10) / 4 for number, op in enumerate(graph.ops) if op.kind != "head"}
    for weight in graph.weights.values():
        shapes[unpacked_shape(weight.rows, weight.cols, weight.format)] = 0.5 + weight.rows % 7 / 3
    head = next(op for op in graph.ops if op.kind == "head")
    shapes |= {shape_of(head, 1): 1.4, shape_of(head, head.dims.outs): 0.8, head_tile_of(head): 3.0}
    origin = device.sources["runtime.unpack_rate"]
    return replace(device, shapes=shapes, sources={**device.sources, **{f"shapes.{shape}": origin for shape in shapes}})


def timed_on(graph: Graph, plan: Plan, device: Device) -> Timed:
    """A run without noise: every instruction takes what the machine needs, its launch not counted."""
    cost = CostModel(graph, device)
    busy = [sum(ns for part, ns in cost.parts(i).items() if part is not Part.LAUNCH) for i in plan.instructions]
    return Timed(graph=graph, plan=plan, run=replace(RUN, durations_ns=tuple(busy)))


def test_rates_and_shapes_read_off_three_runs_predict_them(device: Device) -> None:
    """Whatever the machine takes for each shape, the profile that is read off its runs times their plans as they were."""
    config = small_config(vocab=9000, hidden=512, ffn=1024, num_heads=8, head_dim=64)
    graph = build_graph(config, small_workload(seq_len=128))
    plans = _plans(graph)
    there = machine(graph, device)
    runs = Runs(**{name: timed_on(graph, getattr(plans, name), there) for name in ("whole", "streamed", "narrow")})
    found = attained(runs)
    peak, bandwidth = device.hardware.product_flops, device.hardware.memory_bandwidth
    runtime = replace(
        device.runtime,
        product_fraction=found.product / peak,
        backward_fraction=found.backward / peak,
        attention_fraction=found.attention / peak,
        head_fraction=found.head / peak,
        bandwidth_fraction=found.bandwidth / bandwidth,
        unpack_rate=found.unpack,
    )
    profile = replace(device, runtime=runtime)
    profile = replace(profile, shapes=shape_factors(profile, runs))
    assert knows(profile, graph)
    for one in (runs.whole, runs.streamed, runs.narrow):
        again = timed_on(graph, one.plan, profile)
        assert sum(again.run.durations_ns) == pytest.approx(sum(one.run.durations_ns), rel=5e-3)


def test_a_profile_keeps_what_it_knew_of_other_shapes(small_graph: Graph, device: Device) -> None:
    """The rates are measured anew, but a shape that was not met again takes what it took."""
    other = build_graph(small_config(hidden=512, head_dim=128, ffn=1024), small_workload(seq_len=2048))
    before = machine(other, device)
    was = device.runtime
    moved = {"product_fraction": was.product_fraction / 2, "backward_fraction": was.backward_fraction / 3, "unpack_rate": 7e9}
    other_rates = replace(was, bandwidth_fraction=was.bandwidth_fraction * 0.9, **moved)
    now = remember(replace(machine(small_graph, device), runtime=other_rates), before)
    assert knows(now, small_graph)
    assert knows(now, other)
    for op in other.ops:
        if op.kind in ("linear", "glu") or (op.kind == "linear_backward" and op.weights):
            then_ns, now_ns = (CostModel(other, one).op_ns(op, streamed=bool(op.weights)) for one in (before, now))
            assert now_ns == pytest.approx(then_ns, rel=1e-3)
    assert {f"shapes.{shape}" for shape in now.shapes} <= set(now.sources)


def test_layers_are_taken_until_no_cache_holds_them_and_every_kind_is_among_them() -> None:
    config, workload = small_config(), small_workload()
    assert len(_few_layers(config, workload)) == config.num_layers
    wide = replace(config, hidden=8192, ffn=32768, windows=(0,) * 9)
    assert _few_layers(wide, workload) == (0, 0)
    gemma = replace(wide, windows=(512, 512, 512, 0, 512, 512))
    assert _few_layers(gemma, workload) == (512, 0)


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
