"""Shapes: what a profile knows of them, and what becomes of that when a machine is measured again."""

from dataclasses import replace

import pytest

from mebp.models.build import build_graph
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.kind.table import distinct_products, num_kernels
from mebp.models.op import OpId
from mebp.models.workload import Lora
from mebp.sim.cost import CostModel
from mebp.sim.device import Device, Source
from mebp.sim.footprint import library_bytes
from mebp.sim.profile import dump_device, load_device, parse_device
from mebp.sim.shape import Factors, head_tile_of, knows, remember, shape_of, streamed_shape, unpacked_shape
from tests.conftest import small_config, small_workload


def machine(graph: Graph, device: Device) -> Device:
    """A machine where every shape takes some times what the rates of `device` say."""
    shapes = {shape_of(op): 0.5 + (7 * number % 10) / 4 for number, op in enumerate(graph.ops) if not op.kind.makes_loss}
    for weight in graph.weights.values():
        shapes[unpacked_shape(weight)] = 0.5 + weight.rows % 7 / 3
        shapes[streamed_shape(graph.workload, weight)] = 0.2 + weight.cols % 5 / 4
    head = graph.head
    shapes |= {shape_of(head, 1): 1.4, shape_of(head, head.dims.outs): 0.8, head_tile_of(head): 3.0}
    origin = device.sources["runtime.unpack_rate"]
    return replace(device, shapes=shapes, sources={**device.sources, **{f"shapes.{shape}": origin for shape in shapes}})


def test_a_shape_that_is_measured_times_its_ops_alone(small_graph: Graph, device: Device) -> None:
    op, other = small_graph.op[OpId("0.q")], small_graph.op[OpId("0.gate")]
    plain = CostModel(small_graph, device)
    slow = CostModel(small_graph, replace(device, shapes={shape_of(op): 3.0}))
    took_ns = plain.op_ns(op, streamed=()) - plain.launch_ns
    assert slow.op_ns(op, streamed=()) - slow.launch_ns == pytest.approx(3 * took_ns, abs=2)
    assert slow.op_ns(other, streamed=()) == plain.op_ns(other, streamed=())


@pytest.mark.parametrize(
    "change",
    [{"seq_len": 32, "batch_size": 2}, {"weights": weight_formats("ternary")}, {"lora": Lora(rank=8)}, {"precision": "fp32"}],
)
def test_a_profile_knows_the_shapes_that_it_was_measured_at(change: dict[str, object], small_graph: Graph, device: Device) -> None:
    """As many tokens in more sequences, or other weights behind the same products, are not the same."""
    there = machine(small_graph, device)
    assert knows(there, small_graph)
    assert not knows(there, build_graph(small_config(), small_workload(**change)))
    assert not knows(device, small_graph)


def test_a_profile_measured_at_two_lengths_knows_those_between(small_graph: Graph, device: Device) -> None:
    """They are not measured again, and what each of their ops takes lies between."""
    short, between, long = (build_graph(small_config(), small_workload(seq_len=tokens)) for tokens in (32, 128, 2048))
    shapes = dict(machine(short, device).shapes)
    assert not knows(replace(device, shapes=shapes), between)
    there = replace(device, shapes=shapes | machine(long, device).shapes)
    assert knows(there, between)
    assert not knows(there, build_graph(small_config(), small_workload(seq_len=4096)))
    factors = Factors(there.shapes)
    for ops in zip(short.ops, between.ops, long.ops, strict=True):
        if ops[0].kind.is_linear:
            before, found, behind = (factors.get(shape_of(op)) or 0.0 for op in ops)
            assert min(before, behind) <= found <= max(before, behind)


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
        if op.kind.name == "glu" or (op.kind.is_linear and op.weights):
            then_ns, now_ns = (CostModel(other, one).op_ns(op, streamed=op.weights) for one in (before, now))
            assert now_ns == pytest.approx(then_ns, rel=1e-3)
    assert {f"shapes.{shape}" for shape in now.shapes} <= set(now.sources)


def test_names_that_no_op_has_are_not_carried_on(small_graph: Graph, device: Device) -> None:
    before = replace(device, shapes={"gone rows=3": 2.0})
    assert "gone rows=3" not in remember(machine(small_graph, device), before).shapes


def test_what_libraries_keep_is_known_by_shape_and_stays_when_another_model_is_measured(small_graph: Graph) -> None:
    """Measuring a model whose products keep next to nothing changes nothing for one measured before."""
    other = build_graph(small_config(hidden=96, num_heads=6), small_workload(precision="fp32"))
    measured = Source(kind="measured", source="a test")

    def of(graph: Graph, each: float) -> Device:
        spaces = {shape_of(op): each * op.kind.kernels(op) for op in distinct_products(graph.ops)}
        device = load_device("laptop16").with_value("runtime.kernel_bytes", each)
        sources = {"runtime.kernel_bytes": measured} | {f"workspace.{shape}": measured for shape in spaces}
        return replace(device, workspace=spaces, sources={**device.sources, **sources})

    first = of(small_graph, 2_280_000.0)
    both = remember(of(other, 24_000.0), first)
    assert library_bytes(small_graph.ops, both) == library_bytes(small_graph.ops, first) == 2_280_000 * num_kernels(small_graph.ops)
    assert library_bytes(other.ops, both) == 24_000 * num_kernels(other.ops)
    assert parse_device(dump_device(both), "x").workspace == both.workspace


def test_products_in_another_precision_keep_what_that_precision_does() -> None:
    device = load_device("laptop16")
    graphs = [build_graph(small_config(), small_workload(precision=precision)) for precision in ("bf16", "fp32")]
    sizes = [library_bytes(graph.ops, device) // num_kernels(graph.ops) for graph in graphs]
    assert sizes == [device.runtime.kernel_bytes, device.runtime.kernel_bytes_fp32]
    assert sizes[0] > 20 * sizes[1]


def test_a_shape_that_was_not_measured_lies_between_the_next_in_tokens() -> None:
    factors = Factors(
        {
            "linear rows=64 cols=8 outs=4 itemsize=2": 2.0,
            "linear rows=512 cols=8 outs=4 itemsize=2": 3.0,
            "linear rows=128 cols=8 outs=9 itemsize=2": 9.0,
            "streamed itemsize=2 tokens=64 rows=8 cols=4 int8": 0.5,
            "streamed itemsize=2 tokens=64 rows=9 cols=4 int8": 0.7,
            "unpack rows=8 cols=4 int8": 1.5,
        }
    )
    assert factors.get("linear rows=32 cols=8 outs=4 itemsize=2") == 2.0
    assert factors.get("linear rows=128 cols=8 outs=4 itemsize=2") == pytest.approx(2 + 1 / 3)
    assert factors.get("linear rows=4096 cols=8 outs=4 itemsize=2") == 3.0
    assert factors.get("linear rows=96 cols=8 outs=5 itemsize=2") is None
    assert factors.get("streamed itemsize=2 tokens=8 rows=9 cols=4 int8") == 0.7
    assert factors.get("unpack rows=9 cols=4 int8") is None


def test_attention_goes_by_the_keys_that_it_sees() -> None:
    """A chunk of queries against a long past takes what a long sequence takes, not what a sequence of its own length does."""
    factors = Factors(
        {
            "attention rows=256 batch=1 seq=256 heads=2 pairs=32896 itemsize=2": 3.0,
            "attention rows=4096 batch=1 seq=4096 heads=2 pairs=8390656 itemsize=2": 1.0,
        }
    )
    assert factors.get("attention rows=256 batch=1 seq=256 first=7936 heads=2 pairs=1048640 itemsize=2") == 1.0
    assert factors.get("attention rows=512 batch=2 seq=256 heads=2 pairs=32896 itemsize=2") == 3.0
