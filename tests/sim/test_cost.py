"""The cost of single instructions, worked out by hand from a profile's numbers."""

from dataclasses import replace

import pytest

from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.models.op import OpId, Part
from mebp.models.tensor import TensorId, WeightId
from mebp.plan import Compute, Free, Load, Place, Store, Unpack
from mebp.sim.cost import CostModel, floor_ns
from mebp.sim.device import Device
from mebp.sim.profile import override
from mebp.sim.shape import shape_of, streamed_average, streamed_shape
from tests.conftest import small_config, small_workload

TOKENS, WIDTH, FFN, KV, RANK = 64, 64, 192, 32, 4
LAUNCH_NS = 1000


@pytest.fixture(scope="module")
def device(device: Device) -> Device:
    """Round numbers: a product runs at 1e9, 5e8 backward; memory moves 1e9 bytes a second, the flash 1e8 and 5e7."""
    hardware = ["product_flops=2e9", "memory_bandwidth=2e9", "flash_read=1e8", "flash_write=5e7", "page_cache_bytes=1e12"]
    runtime = ["product_fraction=0.5", "backward_fraction=0.25", "bandwidth_fraction=0.5", "unpack_rate=1e6", "fp32_factor=4"]
    runtime += [f"launch_seconds={LAUNCH_NS / 1e9}", "flash_latency_seconds=1e-3"]
    return override(device, [*(f"hardware.{entry}" for entry in hardware), *(f"runtime.{entry}" for entry in runtime)])


@pytest.fixture(scope="module")
def cost(small_graph: Graph, device: Device) -> CostModel:
    return CostModel(small_graph, device)


def compute(op: str, *, streamed: bool = False, tile: int = 0) -> Compute:
    weight = WeightId("embedding.weight" if op == "head" else f"{op}.weight")
    return Compute(op=OpId(op), reads=(), writes=(), streamed=(weight,) if streamed else (), tile=tile)


def test_a_product_takes_its_flops_at_the_rate_of_its_direction(cost: CostModel) -> None:
    lora_flops = 2 * TOKENS * RANK * (WIDTH + FFN)
    forward_ns = 2 * TOKENS * WIDTH * FFN + lora_flops  # at 1e9 FLOP/s a FLOP takes a nanosecond
    assert cost.parts(compute("0.gate")) == {Part.PRODUCTS: forward_ns, Part.LAUNCH: LAUNCH_NS}
    backward = cost.parts(compute("1.gate.backward"))
    assert backward[Part.PRODUCTS] > 2 * 2 * TOKENS * WIDTH * FFN  # dx at half the rate, and the adapters' gradients
    assert backward[Part.PRODUCTS] == 2 * cost.graph.op[OpId("1.gate.backward")].kind.flops(cost.graph.op[OpId("1.gate.backward")])


def test_a_streamed_product_unpacks_every_weight_and_one_in_an_instruction_of_its_own_costs_the_same(cost: CostModel) -> None:
    unpack_ns = 1000 * WIDTH * FFN  # at 1e6 weights per second
    streamed = cost.parts(compute("0.gate", streamed=True))
    assert streamed[Part.UNPACK] == unpack_ns
    weight = WeightId("0.gate.weight")
    whole = cost.parts(Unpack(weight=weight, place=Place(tensor=TensorId(weight), offset=0, nbytes=64)))
    assert whole == {Part.UNPACK: unpack_ns, Part.LAUNCH: LAUNCH_NS}
    apart = sum(whole.values()) + cost.duration(compute("0.gate"))
    assert sum(streamed.values()) == apart


def test_an_element_wise_op_takes_the_bytes_that_it_moves(cost: CostModel) -> None:
    moved = 3 * TOKENS * FFN * 2  # gate and up in, their product out, bf16: a nanosecond per byte
    assert cost.parts(compute("0.glu")) == {Part.ELEMENTWISE: moved, Part.LAUNCH: LAUNCH_NS}


def test_flash_takes_its_latency_and_its_rate(cost: CostModel) -> None:
    stream = TensorId("embed.out")
    nbytes = cost.graph.tensors[stream].nbytes
    assert cost.parts(Store(tensor=stream)) == {Part.FLASH: 1_000_000 + 20 * nbytes}
    assert cost.parts(Load(place=Place(tensor=stream, offset=0, nbytes=nbytes))) == {Part.FLASH: 1_000_000 + 10 * nbytes}
    assert cost.duration(Free(tensor=stream)) == 0


def test_weights_beyond_the_page_cache_are_read_from_flash_where_that_takes_longer(small_graph: Graph, device: Device) -> None:
    weight = small_graph.weights[WeightId("0.gate.weight")]
    file_bytes = sum(one.nbytes for one in small_graph.weights.values())
    half = override(device, [f"hardware.page_cache_bytes={file_bytes // 2}", "runtime.unpack_rate=1e12"])
    expected = 0.5 * weight.nbytes / 1e8 * 1e9
    assert CostModel(small_graph, half).unpack_ns(weight) == pytest.approx(expected, rel=1e-3)
    assert CostModel(small_graph, device).unpack_ns(weight) == 1000 * weight.count


def test_a_weight_unpacked_ahead_costs_the_processor_nothing(small_graph: Graph, device: Device) -> None:
    cost = CostModel(small_graph, device, ahead=frozenset({WeightId("0.gate.weight")}))
    assert Part.UNPACK not in cost.parts(compute("0.gate", streamed=True))
    assert Part.UNPACK in cost.parts(compute("1.gate", streamed=True))


def test_what_was_measured_of_a_shape_multiplies_its_time(small_graph: Graph, device: Device) -> None:
    op = small_graph.op[OpId("0.gate")]
    slow = replace(device, shapes={shape_of(op, 0): 1.5})
    once, more = (CostModel(small_graph, d).parts(compute("0.gate"))[Part.PRODUCTS] for d in (device, slow))
    assert more == round(1.5 * once)
    up = {CostModel(small_graph, d).parts(compute("0.down"))[Part.PRODUCTS] for d in (device, slow)}
    assert len(up) == 1


def test_what_streaming_was_measured_to_take_is_no_unpacking_by_itself(small_graph: Graph, device: Device) -> None:
    """Where a kernel unpacks within a product, an Unpack says nothing of it; a weight that was not met takes the average."""
    weight = small_graph.weights[WeightId("0.gate.weight")]
    fused = replace(
        device, shapes={streamed_shape(small_graph.workload, weight): 0.25, streamed_average(small_graph.workload): 0.4}
    )
    cost = CostModel(small_graph, fused)
    assert cost.unpack_ns(weight) == 1000 * weight.count
    assert cost.streaming_ns(weight) == 250 * weight.count
    unpacked, streamed = (cost.duration(compute("0.gate", streamed=way)) for way in (False, True))
    assert streamed - unpacked == cost.streaming_ns(weight)
    other = small_graph.weights[WeightId("0.q.weight")]
    assert cost.streaming_ns(other) == 400 * other.count


def test_fp32_products_take_as_much_longer_as_the_profile_says(device: Device) -> None:
    wide, narrow = (build_graph(small_config(), small_workload(precision=precision)) for precision in ("fp32", "bf16"))
    found = [CostModel(graph, device).parts(compute("0.gate"))[Part.PRODUCTS] for graph in (wide, narrow)]
    assert found[0] == 4 * found[1]


def test_the_head_unpacks_its_weight_once_a_pass_and_launches_a_tile_at_a_time(cost: CostModel) -> None:
    whole, tiled = (cost.parts(compute("head", streamed=True, tile=tile)) for tile in (512, 64))
    assert tiled[Part.HEAD] - whole[Part.HEAD] == (512 // 64 - 1) * LAUNCH_NS
    assert tiled[Part.UNPACK] % (1000 * 512 * WIDTH) == 0


def test_no_step_is_faster_than_its_floor(small_graph: Graph, device: Device) -> None:
    assert (
        0
        < floor_ns(small_graph, device)
        < sum(
            CostModel(small_graph, device).op_ns(op, streamed=(), tile=512 if op.kind.makes_loss else 0) for op in small_graph.ops
        )
    )
