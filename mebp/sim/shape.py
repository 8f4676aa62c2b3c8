"""Shapes of ops and weights, and what a machine needs for each beside what its rates say.

A profile's rates are one for each part of a step; `Device.shapes` says how many times as long an op of one kind and shape takes,
measured. A shape that it does not name takes what the rates say, and a tile of the head's logits a launch.
"""

from collections.abc import Iterable
from dataclasses import fields, replace

from mebp.models.format import WeightFormat
from mebp.models.graph import Dims, Graph, Op
from mebp.models.kind import ATTENTION_KINDS, KINDS, LINEAR_KINDS, reads_in_place
from mebp.sim.device import SHAPE_FACTOR, Device

UNPACK, HEAD_TILE, NO_DX = "unpack", "head-tile", "no-dx"
DX_KINDS = ("linear_backward", "norm_backward")
MEASURED = {*KINDS, UNPACK, HEAD_TILE}


def shape_of(op: Op, tile: int = 0) -> str:
    """Kind, what becomes of dL/dx, extents. The head has one name for any vocabulary, and another where `tile` holds all of it."""
    dims, words = op.dims, [op.kind]
    if op.kind == "head":
        words += ["whole"] if tile >= dims.outs else []
        dims = replace(dims, outs=0)
    elif op.kind in DX_KINDS and "dx" not in op.writes:
        words.append("adding" if "dx" in op.updates else NO_DX)
    return " ".join([*words, *_extents(dims)])


def head_tile_of(op: Op) -> str:
    """What a tile of the head's logits takes beside its products, whatever its size, in passes over its sums (rows, cols)."""
    return " ".join([HEAD_TILE, *_extents(replace(op.dims, outs=0))])


def unpacked_shape(rows: int, cols: int, fmt: WeightFormat) -> str:
    """A weight that is decompressed."""
    return f"{UNPACK} rows={rows} cols={cols} {fmt.name}"


def _extents(dims: Dims) -> Iterable[str]:
    return (f"{field.name}={value}" for field in fields(dims) if (value := getattr(dims, field.name)))


def knows(device: Device, graph: Graph) -> bool:
    """Whether the profile was measured at the shapes of a graph's products and of the weights that they unpack."""
    products = [op for op in graph.ops if op.kind in (*LINEAR_KINDS, *ATTENTION_KINDS)]
    weights = (graph.weights[weight] for op in products for weight in op.weights)
    unpacked = (weight for weight in weights if not reads_in_place(weight.format, graph.workload.itemsize))
    needed = {shape_of(op) for op in products} | {unpacked_shape(w.rows, w.cols, w.format) for w in unpacked}
    return needed <= device.shapes.keys()


def remember(device: Device, before: Device) -> Device:
    """A profile measured anew, with the shapes that only the one `before` knew: what they take stays, while the rates move.

    That is so for an op whose time goes with the same rate as before; one that is now bound by memory, and was not, comes out slow.
    """
    others = {shape: factor for shape, factor in before.shapes.items() if shape not in device.shapes and _kind(shape) in MEASURED}
    low, high = SHAPE_FACTOR
    kept = {shape: min(high, max(low, factor * _rate(shape, device) / _rate(shape, before))) for shape, factor in others.items()}
    origins = {f"shapes.{shape}": before.sources[f"shapes.{shape}"] for shape in kept}
    return replace(device, shapes={**kept, **device.shapes}, sources={**device.sources, **origins})


def _kind(shape: str) -> str:
    return shape.partition(" ")[0]


def _rate(shape: str, device: Device) -> float:
    """The rate that a shape's time goes with."""
    kind, runtime = _kind(shape), device.runtime
    if kind == UNPACK:
        return runtime.unpack_rate
    flops = device.hardware.product_flops / (runtime.fp32_factor if shape.endswith("itemsize=4") else 1.0)
    fractions = {
        "linear": runtime.product_fraction,
        "linear_backward": runtime.backward_fraction,
        "head": runtime.head_fraction,
        **dict.fromkeys(ATTENTION_KINDS, runtime.attention_fraction),
    }
    if kind in fractions and NO_DX not in shape:
        return flops * fractions[kind]
    return device.hardware.memory_bandwidth * runtime.bandwidth_fraction
