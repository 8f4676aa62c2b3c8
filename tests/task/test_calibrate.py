"""Which layers calibration runs, what the floor counts, and the curve of memory over a step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mebp.executor.measure.floor import floor_seconds
from mebp.executor.measure.memory import MOST_POINTS, Sampler
from mebp.models.build import build_graph
from mebp.models.config import LINEARS
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.kind.table import dense_flops
from mebp.models.op import Rate
from mebp.sim.cost import floor_ns
from mebp.sim.device import Device
from mebp.task.calibrate import _few_layers, _peak, _small
from tests.conftest import small_config, small_workload


def test_dense_products_are_those_with_frozen_weights(small_graph: Graph, device: Device) -> None:
    """Forward and, but for the lowest layer's q, k and v, backward; the head forward and backward."""
    config, tokens = small_graph.config, small_graph.workload.tokens
    layer = sum(rows * cols for rows, cols in map(config.linear_shape, LINEARS))
    lowest = sum(rows * cols for rows, cols in (config.linear_shape(name) for name in ("q", "k", "v")))
    products = 2 * config.num_layers * layer - lowest + 2 * config.vocab * config.hidden
    assert dense_flops(small_graph.ops) == 2 * tokens * products
    assert floor_ns(small_graph, device) == pytest.approx(dense_flops(small_graph.ops) / device.hardware.product_flops * 1e9)
    assert floor_seconds(small_graph) > 0


def test_layers_are_taken_until_no_cache_holds_them_and_every_kind_is_among_them() -> None:
    config, workload = small_config(), small_workload()
    assert len(_few_layers(config, workload)) == config.num_layers
    wide = replace(config, hidden=8192, ffn=32768, windows=(0,) * 9)
    assert _few_layers(wide, workload) == (0, 8)
    gemma = replace(wide, windows=(512, 512, 512, 0, 512, 512))
    assert _few_layers(gemma, workload) == (0, 3)
    mixed = replace(workload, weights=weight_formats("int4-g32,4.down=int8,5.down=int8"))
    assert _few_layers(gemma, mixed) == (0, 3, 4)
    small, on_it = _small(gemma, mixed)
    assert small.windows == (512, 0, 512)
    assert [on_it.weights.of(f"{layer}.down").name for layer in range(3)] == ["int4-g32", "int4-g32", "int8"]


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


@pytest.mark.parametrize(("attained", "expected"), [(1.2e9, 1e9), (1.9e9, 1e9), (1.4e10, 1.4e10)])
def test_the_peak_is_what_products_attain_in_a_step_where_alone_they_are_all_overhead(
    attained: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model's: 14 times as fast within a step as timed alone would be a fraction that no profile may have."""
    rates = {rate: attained if rate is Rate.FORWARD_PRODUCT else 1e8 for rate in Rate}
    monkeypatch.setattr("mebp.task.calibrate.attained", lambda runs: SimpleNamespace(rates=rates))
    assert _peak(SimpleNamespace(), 1e9) == expected  # type: ignore[arg-type]


def test_a_plan_in_chunks_is_measured_whole() -> None:
    chunked = small_workload(seq_len=2048, chunk=256, whole_attention=True)
    config, workload = _small(small_config(), chunked)
    assert not workload.chunk
    assert any(op.kind.is_linear for op in build_graph(config, workload).ops)
